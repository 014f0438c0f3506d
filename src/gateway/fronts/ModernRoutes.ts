/**
 * Handles requests of revision 2026-07-28 on Streamable HTTP. Each request is complete in itself, and becomes a call on
 * one of its caller's pooled lanes. `ModernCalls` answers its client, and parks the call when the server asks for input.
 *
 * A call's lease is a scope of its own. `begin` owns the scope until the lane has the call. From then on the lane owns
 * it, and closes it once, when the call is over: answered, cancelled (disconnect, timeout, no retry in time, drain), or
 * failed with its process. Parking does not move the lease.
 */
import { Deferred, Effect, Exit, Result, Scope } from "effect"
import { HttpServerResponse } from "effect/http"
import * as PeerOwner from "../auth/PeerOwner.ts"
import type { Handshake } from "../conversation/Lane.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import * as ParamHeaders from "../protocol/ParamHeaders.ts"
import * as Callers from "../sessions/Callers.ts"
import * as Placement from "../sessions/Placement.ts"
import type { LeasedLane } from "../sessions/Sessions.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import * as Listening from "./Listening.ts"
import * as ModernCalls from "./ModernCalls.ts"
import type { Refusal } from "./Refusals.ts"
import { jsonResponse, refuseFailure, refuseModern, shuttingDown } from "./Refusals.ts"
import * as Serving from "./Serving.ts"

type Response = HttpServerResponse.HttpServerResponse

/**
 * Clients may cache the answer to `server/discover` for this many milliseconds: a restarted back end can have changed.
 */
const discoverTimeToLive = 60_000

export const post = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  message: JsonRpc.Message
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  // Over HTTP this revision has no notifications of a client. The notification of an extension belongs to no call on a
  // lane, so it is accepted and dropped.
  if (message._tag !== "Request") return Effect.succeed(HttpServerResponse.empty({ status: 202 }))
  const { id, method } = message
  const read = Modern.read(message, asking.request.headers)
  if (Result.isFailure(read)) return refuseModern(id, read.failure)
  if (Deferred.isDoneUnsafe(serving.draining)) return shuttingDown(id, JsonRpc.codes.internal)
  const call = read.success
  if (Modern.removedMethods.includes(method)) return refuseModern(id, unknownMethod(method))
  const target = serving.sessions.running().get(asking.backend)
  const mismatch = method === "tools/call"
    ? ParamHeaders.mismatch(target?.paramHeaders ?? new Map(), message.params, asking.request.headers)
    : undefined
  return mismatch === undefined ? atLanes(serving, asking, call) : refuseModern(id, mismatch)
}

const unknownMethod = (method: string): Modern.Fault => ({
  status: 404,
  code: JsonRpc.codes.methodNotFound,
  message: `Method not found: revision ${Modern.version} has no ${method}`
})

/** Carries out a request where the caller's lanes live. */
const atLanes = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  call: Modern.Call
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  const here = carryOutHere(serving, asking, call)
  return serving.placement.replica === "" || asking.carried !== undefined ? here : Effect.flatMap(
    placeOf(serving, asking, call),
    (place) => Serving.atPlace(serving, asking, place, call.request.text, here, { known: place._tag === "Shared" })
  )
}

/** The place of a call. A parked call stays where it was parked, wherever its caller's lanes live. */
const placeOf = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  call: Modern.Call
): Effect.Effect<Placement.Place> => {
  const { parked, placement } = serving
  const replica = call.requestState === undefined ? undefined : parked.replicaOf(call.requestState)
  return replica !== undefined ? Effect.succeed(placement.ofReplica(replica)) : Effect.map(
    callerOf(serving, asking, call),
    (caller) => caller.known ? placement.ofCaller(Callers.identify(caller)) : Placement.here
  )
}

/** Carries out a request here, on the caller's lanes. */
const carryOutHere = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  call: Modern.Call
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  switch (call.request.method) {
    case "server/discover":
      return discover(serving, asking, call)
    case "subscriptions/listen":
      return listen(serving, asking, call)
    default:
      return call.requestState === undefined ? begin(serving, asking, call) : Effect.flatMap(
        handshakeOf(serving, asking, call),
        // A modern server makes its own request states, so the call goes to it.
        ({ era }) => era === "legacy" ? retry(serving, asking, call) : begin(serving, asking, call)
      )
  }
}

// ---------------------------------------------------------------------------
// Calls
// ---------------------------------------------------------------------------

const begin = (serving: Serving.Serving, asking: Serving.Asking, call: Modern.Call) =>
  Effect.uninterruptibleMask((restore) => {
    const leaseScope = Scope.makeUnsafe()
    const release = Scope.close(leaseScope, Exit.void)
    const exclusive = needsOwnLane(serving, asking, call)
    const leased = Effect.flatMap(
      callerOf(serving, asking, call),
      (caller) => serving.sessions.lane(caller, exclusive)
    )
    return Effect.flatMap(
      Effect.onError(restore(Scope.provide(leased, leaseScope)), () => release),
      ({ lane }) =>
        Effect.flatMap(
          ModernCalls.attach(serving, asking, call, lane.call(call, exclusive, release)),
          (attached) => restore(ModernCalls.answer(attached))
        )
    ).pipe(Effect.catch((error) => refuseFailure(error, call.request.id, JsonRpc.codes.internal)))
  })

/** Resumes a parked call with the client's input. */
const retry = (serving: Serving.Serving, asking: Serving.Asking, call: Modern.Call) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      serving.parked.take(call.requestState ?? "", ModernCalls.ownerOf(asking, call)),
      (taken) => {
        if (taken._tag === "Refused") {
          return refuseModern(call.request.id, {
            status: 400,
            code: JsonRpc.codes.invalidParams,
            message: `Invalid params: requestState is not valid here: ${taken.reason}`
          })
        }
        return Effect.flatMap(ModernCalls.attach(serving, asking, call, taken.call), (attached) => {
          attached.onLane.resume(call)
          return restore(ModernCalls.answer(attached))
        })
      }
    )
  )

/** True if the server may send messages for this call that do not name the call. */
const needsOwnLane = (
  { sessions }: Serving.Serving,
  { backend }: Serving.Asking,
  { client, logLevel, request }: Modern.Call
): boolean =>
  logLevel !== undefined || (
    sessions.knownEra(backend) !== "modern" &&
    Modern.mayRequireInput.includes(request.method) &&
    Modern.canBeAsked(client.capabilities)
  )

const callerOf = Effect.fnUntraced(function*(
  { fs, settings }: Serving.Serving,
  { backend, carried, principal, request }: Serving.Asking,
  { client }: Modern.Call
) {
  const known = principal !== "" || settings.shareWithoutKeys ||
    (carried === undefined ? yield* PeerOwner.isOwnUser(fs, request) : carried.known)
  const caller: Callers.Caller = { backend, principal, known, client }
  return caller
})

// ---------------------------------------------------------------------------
// server/discover
// ---------------------------------------------------------------------------

const discover = (serving: Serving.Serving, asking: Serving.Asking, call: Modern.Call) =>
  Effect.map(
    handshakeOf(serving, asking, call),
    (handshake) => jsonResponse(Listening.resultText(call, discovered(handshake)), 200)
  )

/** The back end's handshake. Starts a process if no process has done one yet. */
const handshakeOf = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  call: Modern.Call
): Effect.Effect<Handshake, Refusal> =>
  Effect.suspend(() => {
    const known = serving.sessions.running().get(asking.backend)?.handshake
    return known === undefined
      ? Effect.map(Effect.scoped(leaseFirst(serving, asking, call)), ({ lane }) => lane.handshake)
      : Effect.succeed(known)
  })

const leaseFirst = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  call: Modern.Call
): Effect.Effect<LeasedLane, Refusal, Scope.Scope> =>
  Effect.catch(
    Effect.flatMap(callerOf(serving, asking, call), serving.sessions.firstLane),
    (error) => refuseFailure(error, call.request.id, JsonRpc.codes.internal)
  )

/** The answer to `server/discover`, from what a back end has said in its handshake. */
const discovered = ({ capabilities, instructions, serverInfo }: Handshake) => ({
  resultType: "complete",
  supportedVersions: Modern.supportedVersions,
  capabilities,
  instructions,
  ttlMs: discoverTimeToLive,
  // Clients with another key may get other answers.
  cacheScope: "private",
  _meta: serverInfo === undefined ? undefined : { [Modern.metaKeys.serverInfo]: serverInfo }
})

// ---------------------------------------------------------------------------
// subscriptions/listen
// ---------------------------------------------------------------------------

/** Streams the changes that the caller's lanes report. Leases the first lane for as long as the client listens. */
const listen = Effect.fnUntraced(function*(serving: Serving.Serving, asking: Serving.Asking, call: Modern.Call) {
  const filter = Listening.filterOf(call.request.params)
  if (filter === undefined) {
    return yield* refuseModern(call.request.id, {
      status: 400,
      code: JsonRpc.codes.invalidParams,
      message:
        "Invalid params: notifications must be an object that names kinds of change, such as {\"toolsListChanged\": true}"
    })
  }
  const { lane, profile } = yield* leaseFirst(serving, asking, call)
  if (lane.handshake.era === "modern") {
    return yield* Effect.flatMap(
      ModernCalls.attach(serving, asking, call, lane.call(call, false, Effect.void)),
      ModernCalls.answer
    )
  }
  const take = yield* Listening.take(lane, profile, call, filter, serving.draining)
  return EventStreamBody.response(EventStreamBody.make(take, Serving.streamOptions(serving, asking.request)))
})
