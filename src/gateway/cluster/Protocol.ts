/**
 * What replicas ask of each other. Nothing of it is stored, and nothing is sent twice (`Links`).
 *
 * The engine is asked for one thing only: where it is that a shared id belongs (`Home`). Requests themselves go straight there:
 * through the engine's entity a call passes through three layers of RPC, and cost six times the CPU of one that is not forwarded.
 */
import { Schema } from "effect"
import { Entity } from "effect/cluster"
import { Rpc, RpcGroup } from "effect/rpc"

/** Whatever was addressed is about to move, or has moved: ask again. */
export class Moved extends Schema.TaggedError<Moved>()("Moved", {}) {}

/** The asker does not know the replicas' common secret. */
export class NotOneOfUs extends Schema.TaggedError<NotOneOfUs>()("NotOneOfUs", {}) {
  override get message(): string {
    return "The other replica has another GATEWAY_STATE_KEY; give all replicas the same"
  }
}

/** A response that is whole. */
export const Whole = Schema.TaggedStruct("Whole", {
  status: Schema.Int,
  headers: Schema.Record(Schema.String, Schema.String),
  body: Schema.Uint8Array
})

/** A response that is a stream: `Next` gives its body piece by piece, to whoever asks for it in time. */
export const Streamed = Schema.TaggedStruct("Streamed", {
  status: Schema.Int,
  headers: Schema.Record(Schema.String, Schema.String),
  id: Schema.String
})

/** Carries a request out. One message each way where the response is whole, as most are. */
const CarryOut = Rpc.make("CarryOut", {
  payload: {
    pass: Schema.String,
    /** The shared id that the request belongs to, if it is for whoever has that. */
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
  error: Schema.Union([Moved, NotOneOfUs])
})

/**
 * The next chunks of a streamed response; none: it is over. Asked for one by one, because what a stream of the engine sends waits in
 * the way of all other answers while its reader is slow. `Moved`: there is no such response any more.
 */
const Next = Rpc.make("Next", {
  payload: { pass: Schema.String, id: Schema.String },
  success: Schema.Array(Schema.Uint8Array),
  error: Schema.Union([Moved, NotOneOfUs])
})

/** Nobody wants the rest of a streamed response. */
const Abandon = Rpc.make("Abandon", { payload: { pass: Schema.String, id: Schema.String }, error: NotOneOfUs })

/** The sessions of a replica, as JSON. */
const Sessions = Rpc.make("Sessions", {
  payload: { pass: Schema.String },
  success: Schema.String,
  error: Schema.Union([Moved, NotOneOfUs])
})

const EndNumber = Rpc.make("EndNumber", {
  payload: { pass: Schema.String, number: Schema.Int },
  success: Schema.Boolean,
  error: Schema.Union([Moved, NotOneOfUs])
})

/** What a replica does for the others. */
export const Peers = RpcGroup.make(CarryOut, Next, Abandon, Sessions, EndNumber)

/** Tells the name of the replica that has a shared id, and keeps the id there for as long as something lives under it. */
const Locate = Rpc.make("Locate", { success: Schema.String, error: Moved })

/** The engine's entity of a shared id. */
export const Home = Entity.make("Session", [Locate])
