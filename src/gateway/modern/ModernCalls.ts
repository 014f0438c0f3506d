/**
 * What the client of a call gets of it, on one HTTP request after another: its answer as JSON, or an event stream that ends with
 * it. When the server asks for input in the middle of it, the call is parked (`Parked`) until its client sends the request
 * again with the answers.
 *
 * In revision 2026-07-28 a disconnect is a cancellation (basic/patterns/cancellation), so a call belongs to the scope of its
 * HTTP request until it is answered or parked.
 */
import type { Scope } from "effect"
import { Cause, Deferred, Duration, Effect, Fiber, Option } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { HttpServerResponse } from "effect/http"
import * as EventStreamBody from "../http/EventStreamBody.ts"
import { jsonResponse } from "../http/Refusals.ts"
import * as Serving from "../http/Serving.ts"
import * as JsonRpc from "../messages/JsonRpc.ts"
import * as JsonText from "../messages/JsonText.ts"
import type { Event } from "./CallEvents.ts"
import type { RunningCall } from "./Lane.ts"
import * as Listening from "./Listening.ts"
import type * as Modern from "./Modern.ts"
import type * as Parked from "./Parked.ts"
import * as RequestState from "./RequestState.ts"

/** A call as long as an HTTP request answers for it. */
export interface Attached {
  readonly serving: Serving.Serving
  readonly asking: Serving.Asking
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

/** Ties a call to the HTTP request's scope: whoever goes before the answer has cancelled it. */
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
        if (!detached) onLane.cancel("the client has gone")
      })
  )

/** JSON if the answer, or that input is needed, is the first thing that comes; else an event stream that ends with it. */
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
  // A heartbeat interrupts who waits for the step, not the step: it may have taken what comes.
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

/** What comes next of a call. The server's silence for too long ends it. */
const step = (attached: Attached): Effect.Effect<Step> => {
  const { call, onLane } = attached
  const limit = settingsOf(attached).requestTimeout
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
      const text = JsonRpc.error(call.request.id, JsonRpc.codes.internal, reason)
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

/** Parks a call that waits for its client's input; what the client is answered. `ModernRoutes` resumes it. */
const park = (attached: Attached) => {
  const { asking, call, onLane, serving } = attached
  const refused = (message: string) => {
    onLane.cancel(message)
    return { text: JsonRpc.error(call.request.id, JsonRpc.codes.internal, message), status: 503 }
  }
  // Nobody could come back to it.
  if (Deferred.isDoneUnsafe(serving.draining)) return Effect.succeed(refused("the gateway is shutting down"))
  const { parkedTimeToLive } = settingsOf(attached)
  return Effect.map(serving.parked.park(onLane, ownerOf(asking, call), parkedTimeToLive), (result) => {
    if (result._tag === "TooMany") {
      return refused(`${result.limit} calls wait for input already, the limit; answer one of them, or try again later`)
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

/** Whose a call is, and which: only the same request of the same client may go on with it. */
export const ownerOf = ({ backend, principal }: Serving.Asking, { params, request }: Modern.Call): Parked.Owner => {
  const plain = JsonText.edit(params, { _meta: undefined, inputResponses: undefined, requestState: undefined })
  const digest = RequestState.digest(request.method, Option.getOrNull(JsonRpc.parse(plain)))
  return { backend, principal, digest }
}

const settingsOf = ({ asking, serving }: Attached) =>
  serving.sessions.running().get(asking.backend)?.backend.settings ?? serving.settings
