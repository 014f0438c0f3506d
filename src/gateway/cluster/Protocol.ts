/**
 * What replicas ask of each other. Messages are volatile: the engine stores none and replays none.
 *
 * An address is the name of a replica, or the id of what can move.
 */
import { Schema } from "effect"
import { ClusterSchema, Entity } from "effect/cluster"
import { Rpc } from "effect/rpc"
import * as ReplicaName from "./ReplicaName.ts"

/** Whatever was addressed is about to move, or has moved: ask again. */
export class Moved extends Schema.TaggedError<Moved>()("Moved", {}) {}

/** The asker does not know the replicas' common secret. */
export class NotOneOfUs extends Schema.TaggedError<NotOneOfUs>()("NotOneOfUs", {}) {
  override get message(): string {
    return "The other replica has another GATEWAY_STATE_KEY; give all replicas the same"
  }
}

/** A response: its status and header, and its body, where that is there as a whole. */
export const Head = Schema.TaggedStruct("Head", {
  status: Schema.Int,
  headers: Schema.Record(Schema.String, Schema.String),
  body: Schema.optionalKey(Schema.Uint8Array)
})

export const Chunk = Schema.TaggedStruct("Chunk", { bytes: Schema.Uint8Array })

/** The response is long in coming, or long: `Follow` gives it piece by piece, to whoever asks for it in time. */
export const Later = Schema.TaggedStruct("Later", { id: Schema.String })

/** Of a response: first its head, then the chunks of its body unless the head has the whole. */
export const Piece = Schema.Union([Head, Chunk])
export type Piece = typeof Piece.Type
export type Answer = typeof Head.Type | typeof Later.Type

/**
 * Carries a request out. One message each way where the answer is there soon and whole, as most are: with a stream there are
 * seven, and a call costs twice as much.
 */
const CarryOut = Rpc.make("CarryOut", {
  payload: {
    pass: Schema.String,
    method: Schema.String,
    backend: Schema.String,
    principal: Schema.String,
    known: Schema.Boolean,
    headers: Schema.Record(Schema.String, Schema.String),
    body: Schema.String,
    opens: Schema.optionalKey(Schema.UndefinedOr(Schema.String))
  },
  success: Schema.Union([Head, Later]),
  error: Schema.Union([Moved, NotOneOfUs])
})

const Follow = Rpc.make("Follow", {
  payload: { pass: Schema.String, id: Schema.String },
  success: Piece,
  error: NotOneOfUs,
  stream: true
})

/** The sessions of a replica, as JSON. */
const Sessions = Rpc.make("Sessions", {
  payload: { pass: Schema.String },
  success: Schema.String,
  error: NotOneOfUs
})

const EndNumber = Rpc.make("EndNumber", {
  payload: { pass: Schema.String, number: Schema.Int },
  success: Schema.Boolean,
  error: NotOneOfUs
})

export const Gateway = Entity.make("Gateway", [CarryOut, Follow, Sessions, EndNumber]).annotate(
  ClusterSchema.ShardGroup,
  ReplicaName.groupOf
)
