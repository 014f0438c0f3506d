/**
 * The messages between replicas. No message is stored, and none is sent twice (`Links`).
 *
 * The engine answers one question only: which replica has a shared id (`Home`). Requests go straight to that replica. Through the engine's
 * entity, a call passes three layers of RPC, and took six times the CPU of a call that is not forwarded.
 */
import { Schema } from "effect"
import { Entity } from "effect/cluster"
import { Rpc, RpcGroup } from "effect/rpc"

/** The session, lane or response is not on this replica, or is about to move. The request was not carried out; locate it and retry. */
export class Moved extends Schema.TaggedError<Moved>()("Moved", {}) {}

/** A response in one message. */
export const Whole = Schema.TaggedStruct("Whole", {
  status: Schema.Int,
  headers: Schema.Record(Schema.String, Schema.String),
  body: Schema.Uint8Array
})

/** The head of a streamed response. `Next` returns its body in chunks. The first `Next` must come in time (`StreamedResponses`). */
export const Streamed = Schema.TaggedStruct("Streamed", {
  status: Schema.Int,
  headers: Schema.Record(Schema.String, Schema.String),
  id: Schema.String
})

/** Carries out a request. Takes one message each way if the response is whole, as most are. */
const CarryOut = Rpc.make("CarryOut", {
  payload: {
    /** The shared id of the request, if it is for a movable session or lane. */
    shared: Schema.optionalKey(Schema.String),
    method: Schema.String,
    backend: Schema.String,
    principal: Schema.String,
    known: Schema.Boolean,
    headers: Schema.Record(Schema.String, Schema.String),
    body: Schema.String,
    opens: Schema.optionalKey(Schema.UndefinedOr(Schema.String))
  },
  success: Schema.Union([Whole, Streamed]),
  error: Moved
})

/**
 * The next chunks of a streamed response; an empty list at its end. The reader asks for each list. A stream of the engine would block all
 * other answers on the connection while its reader is slow. `Moved`: there is no such response any more.
 */
const Next = Rpc.make("Next", {
  payload: { id: Schema.String },
  success: Schema.Array(Schema.Uint8Array),
  error: Moved
})

/** Drops the rest of a streamed response, because its client has gone. */
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
