/**
 * Answers the client of a call, over one HTTP request or several: with the answer as JSON, or with an event stream that
 * ends with it. If the server asks for input during the call, the call is parked (`Parked`) until its client sends the
 * request again with the answers.
 *
 * In revision 2026-07-28 a disconnect is a cancellation (basic/patterns/cancellation). So a call belongs to the scope
 * of its HTTP request until it is answered or parked.
 */
import type { Scope } from "effect"
import { Cause, Deferred, Duration, Effect, Fiber, Option } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { HttpServerResponse } from "effect/http"
import type { Event } from "../conversation/CallEvents.ts"
import type { RunningCall } from "../conversation/Lane.ts"
import type * as Parked from "../conversation/Parked.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type * as Modern from "../protocol/Modern.ts"
import * as RequestState from "../protocol/RequestState.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import * as Listening from "./Listening.ts"
import { jsonResponse } from "./Refusals.ts"
import * as Serving from "./Serving.ts"

/** A call that an HTTP request is attached to. */
export interface Attached {
  readonly serving: Serving.Serving
  readonly asking: Serving.Asking
  readonly call: Modern.Call
  readonly onLane: RunningCall
  /** True once the call is answered or parked. From then on the end of the HTTP request does not cancel it. */
  detached: boolean
  /** When the server last sent something for the call. */
  since: number
}

/** The next messages for the client. `done` if they are the last. */
interface Step {
  readonly texts: NonEmptyReadonlyArray<string>
  readonly status: number
  readonly done: boolean
}

/** Ties a call to the HTTP request's scope: a client that disconnects before the answer cancels it. */
export const attach = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  call: Modern.Call,
  onLane: RunningCall
): Effect.Effect<Attached, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.clockWith((clock) =>
      Effect.sync(() => ({ serving, asking, call, onLane, detached: false, since: clock.currentTimeMillisUnsafe() }))
    ),
    ({ detached }) =>
      Effect.sync(() => {
        if (!detached) onLane.cancel("the client disconnected")
      })
  )

/**
 * Responds with JSON if the first message is the answer or asks for input, else with an event stream that ends with it.
 */
export const answer = (attached: Attached): Effect.Effect<HttpServerResponse.HttpServerResponse, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { asking, serving } = attached
    const first = yield* step(attached)
    if (first.done && first.texts.length === 1) return jsonResponse(first.texts[0], first.status)
    const take = takeSteps(first, () => step(attached), yield* Effect.scope)
    return EventStreamBody.response(EventStreamBody.make(take, Serving.streamOptions(serving, asking.request)))
  })

/** The steps of a call as chunks of a stream. */
const takeSteps = (first: Step, following: () => Effect.Effect<Step>, scope: Scope.Scope): EventStreamBody.Take => {
  let next: Step | undefined = first
  let coming: Fiber.Fiber<Step> | undefined
  // The step has its own fiber, which a heartbeat does not interrupt: it may have taken events already. The heartbeat
  // interrupts only the wait for it.
  const later = Effect.suspend(() =>
    coming === undefined
      ? Effect.tap(Effect.forkIn(following(), scope), (fiber) =>
        Effect.sync(() => {
          coming = fiber
        }))
      : Effect.succeed(coming)
  ).pipe(Effect.uninterruptible, Effect.flatMap(Fiber.join))
  return Effect.suspend(() => {
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
}

const over: Step = { texts: [""], status: 200, done: true }

/** The next step of a call. Ends the call if the server sends nothing for `requestTimeout`. */
const step = (attached: Attached): Effect.Effect<Step> => {
  const { call, onLane } = attached
  const limit = settingsOf(attached).requestTimeout
  return Effect.clockWith((clock) => {
    // Only messages of the server restart the time, not the heartbeats of the stream.
    const left = Math.max(0, attached.since + Duration.toMillis(limit) - clock.currentTimeMillisUnsafe())
    const isListen = call.request.method === "subscriptions/listen"
    return Effect.flatMap(Effect.timeoutOption(onLane.take, isListen ? Duration.infinity : left), (events) => {
      attached.since = clock.currentTimeMillisUnsafe()
      // Uninterruptible, because a disconnect between parking and detaching would cancel the parked call.
      if (Option.isSome(events)) return Effect.uninterruptible(stepOf(attached, events.value))
      const reason = `no answer within ${Duration.format(limit)}; the gateway has cancelled the request`
      attached.detached = true
      onLane.cancel(reason)
      const { text } = JsonRpc.error(call.request.id, JsonRpc.codes.internal, reason)
      return Effect.succeed<Step>({ texts: [text], status: 200, done: true })
    })
  })
}

const stepOf = (attached: Attached, events: NonEmptyReadonlyArray<Event>): Effect.Effect<Step> => {
  const texts = events.flatMap((event) => event._tag === "Notification" ? [event.text] : [])
  const end = events[events.length - 1]
  const ending = end?._tag === "InputRequired"
    ? park(attached)
    : Effect.succeed(end?._tag === "Answer" ? end : undefined)
  return Effect.map(ending, (answer) => {
    if (answer !== undefined) attached.detached = true
    const [first = "", ...others] = answer === undefined ? texts : [...texts, answer.text]
    return { texts: [first, ...others], status: answer?.status ?? 200, done: answer !== undefined }
  })
}

/**
 * Parks a call that waits for its client's input, and returns the response for the client. `ModernRoutes` resumes the
 * call.
 */
const park = (attached: Attached) => {
  const { asking, call, onLane, serving } = attached
  const refused = (message: string) => {
    onLane.cancel(message)
    return { text: JsonRpc.error(call.request.id, JsonRpc.codes.internal, message).text, status: 503 }
  }
  // No client could come back to a call that is parked now.
  if (Deferred.isDoneUnsafe(serving.draining)) return Effect.succeed(refused("the gateway is shutting down"))
  const { parkedTimeToLive } = settingsOf(attached)
  return Effect.map(serving.parked.park(onLane, ownerOf(asking, call), parkedTimeToLive), (result) => {
    if (result._tag === "TooMany") {
      return refused(
        `${result.limit} calls already wait for input, which is the limit; answer one of them, or try again later`
      )
    }
    const inputRequests = Object.fromEntries(
      onLane.inputRequests().map(({ key, method, params }) => [key, { method, params }])
    )
    const { requestState } = result
    const required = { resultType: "input_required", inputRequests, requestState }
    return { text: Listening.resultText(call, required), status: 200 }
  })
}

/** The owner of a call and a digest of its request. Only the same request of the same client may continue the call. */
export const ownerOf = ({ backend, principal }: Serving.Asking, { request }: Modern.Call): Parked.Owner => {
  const params = { ...Json.objectOf(request.params), _meta: null, inputResponses: null, requestState: null }
  const digest = RequestState.digest(request.method, params)
  return { backend, principal, digest }
}

const settingsOf = ({ asking, serving }: Attached) =>
  serving.sessions.running().get(asking.backend)?.backend.settings ?? serving.settings
