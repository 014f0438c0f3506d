/**
 * Light sessions: those of a back end that keeps sessions by caller (`sessions: "caller"`). A light session has no process. Each of its
 * requests becomes a call on the lanes of its caller, as if a client of revision 2026-07-28 had made it. All light sessions of a caller
 * share these lanes, and a lane tells calls apart. So ids, progress tokens and questions of different sessions never meet.
 *
 * `Bridge` has the conversation with the client. `LegacyFace` translates it, and keeps the log level and the subscriptions. The connection
 * below, made by `connect`, hands the translated requests to the broker, which finds the replica of the caller.
 */
import type { Scope } from "effect"
import { Deferred, Effect, FiberMap, Option, Pull } from "effect"
import * as Bridge from "../conversation/Bridge.ts"
import type { Limits } from "../conversation/BridgeRequests.ts"
import type * as ClientRecord from "../conversation/ClientRecord.ts"
import type { Event, Refusal, Reply } from "../conversation/Exchange.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import * as LegacyFace from "../transports/LegacyFace.ts"
import type { Receiver, Transport } from "../transports/Transport.ts"
import { BackendFailed, deliver } from "../transports/Transport.ts"
import type { Carrying } from "./Ask.ts"

/** Makes a call of the session's caller. */
type MakeCall = (request: JsonRpc.Request) => Carrying

/** Counts nothing, because the lane counts each call. */
const uncounted: RequestMetrics = { request: () => {}, garbage: () => {} }

/** Opens a light session. Fails if its back end cannot be started or reached. */
export const make = Effect.fnUntraced(function*(
  call: MakeCall,
  record: ClientRecord.ClientRecord,
  limits: Limits
) {
  const face = yield* LegacyFace.make(connect(call), "lanes")
  const bridge = yield* Bridge.make(Effect.succeed(face), record, limits, uncounted)
  return { ...bridge, listening: face.listening }
})

/** A connection whose server is the caller's lanes. Each request runs in a fiber, whose interruption cancels the call. */
const connect = Effect.fnUntraced(function*(call: MakeCall): Effect.fn.Return<Transport, never, Scope.Scope> {
  const running = yield* FiberMap.make<JsonRpc.IdKey>()
  const run = yield* FiberMap.runtime(running)()
  const ended = Deferred.makeUnsafe<BackendFailed>()
  let receiver: Receiver = { receive: () => true, garbage: () => {}, room: Effect.void }

  const pass = (events: ReadonlyArray<Pick<Event, "text">>) =>
    Effect.forEach(events, ({ text }) => deliver(receiver, text) ? Effect.void : receiver.room, { discard: true })
  const passAll = ({ id, method }: JsonRpc.Request, reply: Reply) => {
    if (reply._tag !== "Events") return pass(reply._tag === "Answer" ? [reply] : [])
    // A listen may end without an answer.
    const last = method === "subscriptions/listen"
      ? [JsonRpc.error(id, JsonRpc.codes.internal, "The stream has ended")]
      : []
    return Pull.catchDone(Effect.forever(Effect.flatMap(reply.take, pass)), () => pass(last))
  }
  const refuse = ({ method }: JsonRpc.Request, { error, reason }: Refusal) => {
    if (method !== "server/discover") return pass([error])
    // `initialize` then fails as that of a session with a process of its own.
    const message = Json.textOf(Json.field(error.error, "message"))
    const failure = new BackendFailed({ reason: message, stderr: "", shortage: reason !== "back end failed" })
    return Deferred.succeed(ended, failure)
  }
  const carryOut = (request: JsonRpc.Request) =>
    Effect.scoped(
      Effect.flatMap(call(request), ({ reply }) => Effect.flatMap(reply, (reply) => passAll(request, reply)))
    ).pipe(
      Effect.catch((refusal) => refuse(request, refusal))
    )
  const offer = (message: JsonRpc.Message): boolean => {
    // `LegacyFace` does not expect an answer before it has sent the whole request.
    if (message._tag === "Request") run(JsonRpc.idKey(message.id), Effect.andThen(Effect.yieldNow, carryOut(message)))
    const cancelled = JsonRpc.cancelledId(message)
    if (cancelled !== undefined) {
      Option.map(FiberMap.getUnsafe(running, JsonRpc.idKey(cancelled)), (fiber) => fiber.interruptUnsafe())
    }
    return true
  }
  return {
    pid: undefined,
    ended,
    failed: (reason) => new BackendFailed({ reason, stderr: "" }),
    attach: (to) => Effect.sync(() => (receiver = to)),
    offer,
    send: (message) => Effect.sync(() => offer(message))
  }
})
