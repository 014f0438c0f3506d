/**
 * Revision 2026-07-28 on Streamable HTTP: each request is complete in itself. In front of the servers people have, which keep
 * their state in a process, a request becomes a call on one of its caller's pooled lanes; when the server asks for input in
 * the middle of it, the call is parked until its client sends the request again with the answers.
 *
 * Here a disconnect is a cancellation (basic/patterns/cancellation), so a call belongs to the scope of its HTTP request until
 * it is answered or parked.
 *
 * A call's lease is a scope of its own. `begin` owns it until the lane has the call; from then on the lane does, and closes it
 * once, when the call is over: answered, cancelled (its client gone, too slow, not retried in time, drained), or failed with its
 * process. Parking moves no lease.
 */
import type { FileSystem } from "effect"
import { Cause, Deferred, Duration, Effect, Exit, Fiber, Option, Result, Scope } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { HttpServerRequest } from "effect/http"
import { HttpServerResponse } from "effect/http"
import type * as Callers from "./Callers.ts"
import type { Event } from "./CallEvents.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import * as JsonRpc from "./JsonRpc.ts"
import * as JsonText from "./JsonText.ts"
import type { Handshake, RunningCall } from "./Lane.ts"
import * as Listening from "./Listening.ts"
import * as Modern from "./Modern.ts"
import * as ParamHeaders from "./ParamHeaders.ts"
import type * as Parked from "./Parked.ts"
import * as PassThrough from "./PassThrough.ts"
import * as PeerOwner from "./PeerOwner.ts"
import type { Refusal } from "./Refusals.ts"
import { jsonResponse, refuseFailure, refuseModern, shuttingDown } from "./Refusals.ts"
import type * as Remote from "./Remote.ts"
import * as RequestState from "./RequestState.ts"
import * as RunningBackend from "./RunningBackend.ts"
import type { LeasedLane, Principal, Sessions } from "./Sessions.ts"
import type * as Settings from "./Settings.ts"

type Response = HttpServerResponse.HttpServerResponse
type Request = HttpServerRequest.HttpServerRequest

/** One request, as far as it has been checked. */
export interface Asking {
  readonly request: Request
  readonly backend: string
  readonly principal: Principal
}

export interface Dependencies {
  readonly sessions: Sessions["Service"]
  readonly settings: Settings.GatewaySettings
  readonly parked: Parked.Parked
  readonly draining: Deferred.Deferred<void>
  readonly fs: FileSystem.FileSystem
  readonly streamOptions: (request: Request) => EventStreamBody.Options
}

/** A call as long as an HTTP request answers for it. */
interface Attached {
  readonly asking: Asking
  readonly call: Modern.Call
  readonly onLane: RunningCall
  /** It has been answered or parked: the end of the HTTP request is not the end of the call. */
  detached: boolean
  /** When the server has last said something for it. */
  since: number
}

/** What the client gets next, and whether that is all. */
interface Step {
  readonly texts: NonEmptyReadonlyArray<string>
  readonly status: number
  readonly done: boolean
}

/** Discovery may be remembered for so long, in milliseconds: a restarted back end can have changed. */
const discoverTimeToLive = 60_000

export const make = ({ draining, fs, parked, sessions, settings, streamOptions }: Dependencies) => {
  const post = (
    asking: Asking,
    message: JsonRpc.Message,
    text: string
  ): Effect.Effect<Response, Refusal, Scope.Scope> => {
    // Over HTTP this revision has no notifications of a client; what an extension may send belongs to no call here.
    if (message._tag !== "Request") {
      const target = running(asking.backend)
      return target?.remote !== undefined && target.era === "modern"
        ? passOn(asking, target, target.remote, undefined, text)
        : Effect.succeed(HttpServerResponse.empty({ status: 202 }))
    }
    const { id, method } = message
    const read = Modern.read(message, text, asking.request.headers)
    if (Result.isFailure(read)) return refuseModern(id, read.failure)
    if (Deferred.isDoneUnsafe(draining)) return shuttingDown(id, JsonRpc.codes.internal)
    const call = read.success
    if (Modern.removedMethods.includes(method)) return refuseModern(id, unknownMethod(method))
    const mismatch = method === "tools/call"
      ? ParamHeaders.mismatch(
        running(asking.backend)?.paramHeaders ?? new Map(),
        message.params,
        asking.request.headers
      )
      : undefined
    if (mismatch !== undefined) return refuseModern(id, mismatch)
    const target = running(asking.backend)
    if (target?.remote === undefined) return carryOut(asking, call)
    const { remote } = target
    return Effect.flatMap(
      Effect.catch(RunningBackend.eraOf(target, remote), (error) => refuseFailure(error, id, JsonRpc.codes.internal)),
      (era) => era === "modern" ? passOn(asking, target, remote, message, text) : carryOut(asking, call)
    )
  }

  /** Hands a message on to a modern HTTP back end. */
  const passOn = (
    asking: Asking,
    target: RunningBackend.RunningBackend,
    remote: Remote.Remote,
    message: JsonRpc.Request | undefined,
    text: string
  ) => {
    const stream = streamOptions(asking.request)
    const passed = PassThrough.forward(
      remote,
      {
        body: text,
        headers: asking.request.headers,
        request: message,
        stream: message?.method === "subscriptions/listen"
          ? { ...stream, greet: true, until: Deferred.await(draining) }
          : stream,
        doubted: () => {
          target.era = undefined
        }
      },
      target.backend.settings,
      target.metrics,
      sessions.passing
    )
    return Effect.catchTag(
      passed,
      "BackendFailed",
      (error) => refuseFailure(error, message?.id, JsonRpc.codes.internal)
    )
  }

  const carryOut = (asking: Asking, call: Modern.Call): Effect.Effect<Response, Refusal, Scope.Scope> => {
    switch (call.request.method) {
      case "server/discover":
        return discover(asking, call)
      case "subscriptions/listen":
        return listen(asking, call)
      default:
        return call.requestState === undefined ? begin(asking, call) : Effect.flatMap(
          handshakeOf(asking, call),
          // A modern server makes states of its own.
          ({ era }) => era === "legacy" ? retry(asking, call) : begin(asking, call)
        )
    }
  }

  const running = (backend: string) => sessions.running().get(backend)

  const callerOf = Effect.fnUntraced(function*({ backend, principal, request }: Asking, { client }: Modern.Call) {
    const known = principal !== "" || settings.shareWithoutKeys || (yield* PeerOwner.isOwnUser(fs, request))
    const caller: Callers.Caller = { backend, principal, known, client }
    return caller
  })

  // ---------------------------------------------------------------------------
  // server/discover
  // ---------------------------------------------------------------------------

  const discover = (asking: Asking, call: Modern.Call) =>
    Effect.map(
      handshakeOf(asking, call),
      (handshake) => jsonResponse(Listening.resultText(call, discovered(handshake)), 200)
    )

  /** What the back end has said of itself; a process is started if none has yet. */
  const handshakeOf = (asking: Asking, call: Modern.Call): Effect.Effect<Handshake, Refusal> =>
    Effect.suspend(() => {
      const known = running(asking.backend)?.handshake
      return known === undefined
        ? Effect.map(Effect.scoped(leaseFirst(asking, call)), ({ lane }) => lane.handshake)
        : Effect.succeed(known)
    })

  const leaseFirst = (asking: Asking, call: Modern.Call): Effect.Effect<LeasedLane, Refusal, Scope.Scope> =>
    Effect.catch(
      Effect.flatMap(callerOf(asking, call), sessions.firstLane),
      (error) => refuseFailure(error, call.request.id, JsonRpc.codes.internal)
    )

  // ---------------------------------------------------------------------------
  // Calls
  // ---------------------------------------------------------------------------

  /** Whether the server may say something for this call that does not say whose it is. */
  const needsOwnLane = (backend: string, { client, logLevel, request }: Modern.Call): boolean =>
    logLevel !== undefined || (
      sessions.knownEra(backend) !== "modern" &&
      Modern.mayRequireInput.includes(request.method) &&
      Modern.canBeAsked(client.capabilities)
    )

  const begin = (asking: Asking, call: Modern.Call) =>
    Effect.uninterruptibleMask((restore) => {
      const leaseScope = Scope.makeUnsafe()
      const release = Scope.close(leaseScope, Exit.void)
      const exclusive = needsOwnLane(asking.backend, call)
      const leased = Effect.flatMap(callerOf(asking, call), (caller) => sessions.lane(caller, exclusive))
      return Effect.flatMap(
        Effect.onError(restore(Scope.provide(leased, leaseScope)), () => release),
        ({ lane }) =>
          Effect.flatMap(
            attach(asking, call, lane.call(call, exclusive, release)),
            (attached) => restore(answer(attached))
          )
      ).pipe(Effect.catch((error) => refuseFailure(error, call.request.id, JsonRpc.codes.internal)))
    })

  /** The client has come back with input for a parked call. */
  const retry = (asking: Asking, call: Modern.Call) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        parked.take(call.requestState ?? "", ownerOf(asking, call)),
        (taken) => {
          if (taken._tag === "Refused") {
            return refuseModern(call.request.id, {
              status: 400,
              code: Modern.codes.invalidParams,
              message: `Invalid params: requestState is not valid here: ${taken.reason}`
            })
          }
          return Effect.flatMap(attach(asking, call, taken.call), (attached) => {
            attached.onLane.resume(call)
            return restore(answer(attached))
          })
        }
      )
    )

  /** Ties a call to the HTTP request's scope: whoever goes before the answer has cancelled it. */
  const attach = (
    asking: Asking,
    call: Modern.Call,
    onLane: RunningCall
  ): Effect.Effect<Attached, never, Scope.Scope> =>
    Effect.acquireRelease(
      Effect.clockWith((clock) =>
        Effect.sync(() => ({ asking, call, onLane, detached: false, since: clock.currentTimeMillisUnsafe() }))
      ),
      ({ detached }) =>
        Effect.sync(() => {
          if (!detached) onLane.cancel("the client has gone")
        })
    )

  const ownerOf = ({ backend, principal }: Asking, { params, request }: Modern.Call): Parked.Owner => {
    const plain = JsonText.edit(params, { _meta: undefined, inputResponses: undefined, requestState: undefined })
    const digest = RequestState.digest(request.method, Option.getOrNull(JsonRpc.parse(plain)), plain)
    return { backend, principal, digest }
  }

  const answer = (attached: Attached): Effect.Effect<Response, never, Scope.Scope> =>
    Effect.gen(function*() {
      const first = yield* step(attached)
      if (first.done && first.texts.length === 1) return jsonResponse(first.texts[0], first.status)
      const scope = yield* Effect.scope
      let next: Step | undefined = first
      let coming: Fiber.Fiber<Step> | undefined
      // A heartbeat interrupts who waits for the step, not the step: it may have taken what comes.
      const later = Effect.suspend(() =>
        coming === undefined
          ? Effect.tap(Effect.forkIn(step(attached), scope), (fiber) =>
            Effect.sync(() => {
              coming = fiber
            }))
          : Effect.succeed(coming)
      ).pipe(Effect.uninterruptible, Effect.flatMap(Fiber.join))
      const take: EventStreamBody.Take = Effect.suspend(() => {
        const ready = next
        if (ready === undefined) {
          return Effect.map(later, (step) => {
            coming = undefined
            if (step.done) next = over
            return Listening.chunks(step.texts)
          })
        }
        if (ready === over) return Cause.done()
        next = ready.done ? over : undefined
        return Effect.succeed(Listening.chunks(ready.texts))
      })
      return EventStreamBody.response(
        EventStreamBody.make(take, streamOptions(attached.asking.request))
      )
    })

  /** What comes next of a call. The server's silence for too long ends it. */
  const step = (attached: Attached): Effect.Effect<Step> => {
    const { asking, call, onLane } = attached
    const limit = running(asking.backend)?.backend.settings.requestTimeout ?? settings.requestTimeout
    return Effect.clockWith((clock) => {
      // A stream asks anew at each heartbeat; only what the server says starts the time anew.
      const left = Math.max(0, attached.since + Duration.toMillis(limit) - clock.currentTimeMillisUnsafe())
      const isListen = call.request.method === "subscriptions/listen"
      return Effect.flatMap(Effect.timeoutOption(onLane.take, isListen ? Duration.infinity : left), (events) => {
        attached.since = clock.currentTimeMillisUnsafe()
        // A call is parked and detached in one step: between the two its client's end would cancel it.
        if (Option.isSome(events)) return Effect.uninterruptible(stepOf(attached, events.value))
        const reason = `no answer within ${Duration.format(limit)}; the gateway has cancelled the request`
        attached.detached = true
        onLane.cancel(reason)
        return Effect.succeed(last(JsonRpc.error(call.request.id, JsonRpc.codes.internal, reason)))
      })
    })
  }

  const stepOf = (attached: Attached, events: NonEmptyReadonlyArray<Event>): Effect.Effect<Step> => {
    const texts = events.flatMap((event) => event._tag === "Notification" ? [event.text] : [])
    const end = events[events.length - 1]
    const ending = end?._tag === "InputRequired"
      ? parkCall(attached)
      : Effect.succeed(end?._tag === "Answer" ? end : undefined)
    return Effect.map(ending, (answer) => {
      if (answer !== undefined) attached.detached = true
      const [first = "", ...others] = answer === undefined ? texts : [...texts, answer.text]
      return { texts: [first, ...others], status: answer?.status ?? 200, done: answer !== undefined }
    })
  }

  const parkCall = ({ asking, call, onLane }: Attached) => {
    if (Deferred.isDoneUnsafe(draining)) {
      // Nobody could come back to it.
      const message = "the gateway is shutting down"
      onLane.cancel(message)
      return Effect.succeed({ text: JsonRpc.error(call.request.id, JsonRpc.codes.internal, message), status: 503 })
    }
    const timeToLive = running(asking.backend)?.backend.settings.parkedTimeToLive ?? settings.parkedTimeToLive
    return Effect.map(parked.park(onLane, ownerOf(asking, call), timeToLive), (result) => {
      if (result._tag === "TooMany") {
        const message =
          `${result.limit} calls wait for input already, the limit; answer one of them, or try again later`
        onLane.cancel(message)
        return { text: JsonRpc.error(call.request.id, JsonRpc.codes.internal, message), status: 503 }
      }
      const inputRequests = JsonText.make(onLane.inputRequests().map(({ key, text }) => [key, text]))
      const required = JsonText.make([
        ["resultType", "\"input_required\""],
        ["inputRequests", inputRequests],
        ["requestState", JSON.stringify(result.requestState)]
      ])
      return { text: Listening.resultText(call, required), status: 200 }
    })
  }

  // ---------------------------------------------------------------------------
  // subscriptions/listen
  // ---------------------------------------------------------------------------

  /** The changes that a caller's lanes tell of. The first one is leased for as long as the client listens. */
  const listen = Effect.fnUntraced(function*(asking: Asking, call: Modern.Call) {
    const filter = Listening.filterOf(call.request.params)
    if (filter === undefined) {
      return yield* refuseModern(call.request.id, {
        status: 400,
        code: Modern.codes.invalidParams,
        message: "Invalid params: notifications must be an object of the kinds of change to hear of"
      })
    }
    const { lane, profile } = yield* leaseFirst(asking, call)
    if (lane.handshake.era === "modern") {
      return yield* Effect.flatMap(attach(asking, call, lane.call(call, false, Effect.void)), answer)
    }
    const take = yield* Listening.take(lane, profile, call, filter, draining)
    return EventStreamBody.response(EventStreamBody.make(take, streamOptions(asking.request)))
  })

  return post
}

const over: Step = { texts: [""], status: 200, done: true }

const last = (text: string): Step => ({ texts: [text], status: 200, done: true })

const unknownMethod = (method: string): Modern.Fault => ({
  status: 404,
  code: Modern.codes.methodNotFound,
  message: `Method not found: revision ${Modern.version} has no ${method}`
})

/** The answer to `server/discover`, from what a back end has said in its handshake. */
const discovered = ({ capabilities, instructions, serverInfo }: Handshake): string =>
  JsonText.make([
    ["resultType", "\"complete\""],
    ["supportedVersions", JSON.stringify(Modern.supportedVersions)],
    ["capabilities", capabilities],
    ...(instructions === undefined ? [] : [["instructions", instructions] as const]),
    ["ttlMs", String(discoverTimeToLive)],
    // Whoever has another key may get other answers.
    ["cacheScope", "\"private\""],
    ...(serverInfo === undefined
      ? []
      : [["_meta", JsonText.make([[Modern.metaKeys.serverInfo, serverInfo]])] as const])
  ])
