/**
 * The messages between replicas. No message is stored, and none is sent twice (`Links`).
 *
 * The engine answers one question only: which replica has a shared id (`Home`). Requests go straight to that replica. Through the engine's
 * entity, a call passes three layers of RPC, and took six times the CPU of a call that is not forwarded.
 */
import { Option, Predicate, Schema, SchemaGetter } from "effect"
import { Entity } from "effect/cluster"
import { Rpc, RpcGroup } from "effect/rpc"
import * as Exchange from "../conversation/Exchange.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"

/** The session, lane or exchange is not on this replica, or is about to move. The ask was not carried out; locate it and retry. */
export class Moved extends Schema.TaggedError<Moved>()("Moved", {}) {}

/** A JSON-RPC message, which travels as its text. No other text can be decoded. */
const message = <A extends JsonRpc.Message>(is: (value: unknown) => value is A) =>
  Schema.String.pipe(Schema.decodeTo(Schema.declare(is), {
    decode: SchemaGetter.transformOptional((text) => Option.filter(Option.map(text, JsonRpc.read), is)),
    encode: SchemaGetter.transform(({ text }) => text)
  }))

export const Request = message((value): value is JsonRpc.Request => Predicate.isTagged(value, "Request"))
const Response = message((value): value is JsonRpc.Response => Predicate.isTagged(value, "Response"))
// `read` returns nothing else.
export const Message = message((value): value is JsonRpc.Message => value !== undefined)

/** See `Ask` in `sessions/Ask.ts`. */
const Ask = Schema.Union([
  Schema.TaggedStruct("Open", { message: Request }),
  Schema.TaggedStruct("Send", { session: Schema.String, messages: Schema.Array(Message) }),
  Schema.TaggedStruct("Listen", { session: Schema.String, from: Schema.UndefinedOr(Schema.String) }),
  Schema.TaggedStruct("End", { session: Schema.String }),
  Schema.TaggedStruct("Call", { request: Request })
])

const Reason = Schema.Literals(["invalid", "unknown", "too many", "back end failed", "unavailable"])

/** See `Refusal` in `conversation/Exchange.ts`. */
const Refused = Schema.Struct({
  reason: Reason,
  error: Response,
  retryAfter: Schema.UndefinedOr(Schema.Number)
}).pipe(Schema.decodeTo(Schema.instanceOf(Exchange.Refusal), {
  decode: SchemaGetter.transform((refused) => new Exchange.Refusal(refused)),
  encode: SchemaGetter.transform(({ error, reason, retryAfter }) => ({ error, reason, retryAfter }))
}))

const Event = { id: Schema.optional(Schema.String), text: Schema.String }

/** An exchange whose reply is in this message. */
const Whole = Schema.TaggedStruct("Whole", {
  session: Schema.optional(Schema.String),
  reply: Schema.Union([
    Schema.TaggedStruct("Answer", { ...Event, reason: Schema.optional(Reason) }),
    Schema.TaggedStruct("Nothing", {})
  ])
})

/** An exchange whose reply is events. `Next` returns them. The first `Next` must come in time (`StreamedExchanges`). */
export const Streamed = Schema.TaggedStruct("Streamed", {
  session: Schema.optional(Schema.String),
  id: Schema.String,
  start: Schema.optional(Schema.String)
})

/** The span of the replica that asks. */
export const Span = Schema.Struct({ traceId: Schema.String, spanId: Schema.String, sampled: Schema.Boolean })

/** Carries out what a client asks for. Takes one message each way if the exchange is whole, as most are. */
const CarryOut = Rpc.make("CarryOut", {
  payload: {
    /** The shared id of the session or lane, if it is movable. */
    shared: Schema.optional(Schema.String),
    backend: Schema.String,
    /** The id of the principal. */
    principal: Schema.String,
    principalName: Schema.optional(Schema.String),
    known: Schema.Boolean,
    light: Schema.optional(Schema.Boolean),
    ask: Ask,
    opens: Schema.UndefinedOr(Schema.String),
    parent: Schema.optional(Span)
  },
  success: Schema.Union([Whole, Streamed]),
  error: Schema.Union([Moved, Refused])
})

export type CarryOut = Rpc.Payload<typeof CarryOut>

/** Events of a streamed exchange. There may be none, even if it is not `done`. */
export const Events = Schema.Struct({ events: Schema.Array(Schema.Struct(Event)), done: Schema.Boolean })

/**
 * The next events of a streamed exchange. The reader asks for each list. A stream of the engine would block all other answers on the
 * connection while its reader is slow. `Moved`: there is no such exchange any more.
 */
const Next = Rpc.make("Next", {
  payload: { id: Schema.String },
  success: Events,
  error: Moved
})

/** Drops the rest of a streamed exchange, because its client has gone. */
const Abandon = Rpc.make("Abandon", { payload: { id: Schema.String } })

/** The sessions of a replica, as JSON. */
const Sessions = Rpc.make("Sessions", { success: Schema.String, error: Moved })

/** Ends the live session with a number. False if there is none. */
const EndNumber = Rpc.make("EndNumber", {
  payload: { number: Schema.Int },
  success: Schema.Boolean,
  error: Moved
})

/** The messages that a replica handles for the others. */
export const Peers = RpcGroup.make(CarryOut, Next, Abandon, Sessions, EndNumber)

/** Returns the name of the replica that has a shared id. The id stays there while a session or lane lives under it. */
const Locate = Rpc.make("Locate", { success: Schema.String, error: Moved })

/** The engine's entity of a shared id. */
export const Home = Entity.make("Session", [Locate])
