/** Forwards the asks of clients to other replicas, and passes the events on as they arrive. */
import { Cause, Effect, Exit, Fiber, Option, Result, Tracer } from "effect"
import type { Scope } from "effect"
import type { RpcClientError } from "effect/rpc"
import { Socket } from "effect/socket"
import type { Event, Exchange, Reason, Refusal, Take } from "../conversation/Exchange.ts"
import { refusal } from "../conversation/Exchange.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { Ask } from "../sessions/Ask.ts"
import { idOf, requestsOf } from "../sessions/Ask.ts"
import type { Carried } from "../sessions/Placement.ts"
import { retryAfter } from "../sessions/Refusals.ts"
import type { Client, Links, Unreachable } from "./Links.ts"
import type * as Protocol from "./Protocol.ts"

/** How long the other replica may take to confirm that the rest of the events is not wanted. */
const abandonTimeout = "1 second"

/** The error of a request whose connection broke before its answer came. */
const outcomeUnknown =
  "The connection to the replica of this session broke; the gateway cannot tell whether the request was carried out"

/**
 * Has another replica carry out an ask. With `shared`, that replica carries it out only if it has that shared id. `Moved` and
 * `Unreachable` mean that the ask was not carried out.
 */
export const forward = (
  links: Links,
  replica: string,
  carried: Carried,
  shared?: string
): Effect.Effect<Exchange, Refusal | Protocol.Moved | Unreachable, Scope.Scope> => {
  const { principal } = carried
  return Effect.flatMap(
    Effect.all([links.to(replica), spanToSend]),
    ([client, parent]) =>
      client.CarryOut({ ...carried, principal: principal.id, principalName: principal.name, shared, parent }).pipe(
        Effect.flatMap((answer) =>
          answer._tag === "Whole"
            ? Effect.succeed({ session: answer.session, reply: Effect.succeed(answer.reply) })
            : streamed(answer, client, carried)
        ),
        Effect.catchCause((cause) => failed(carried.ask, cause))
      )
  )
}

/** The current span, so that the other replica's span is its child. None for Effect's own tracer, which exports nothing. */
const spanToSend = Effect.flatMap(
  Effect.tracer,
  (tracer) =>
    tracer === Tracer.nativeTracer ? Effect.undefined : Effect.orElseSucceed(Effect.currentSpan, () => undefined)
)

/** Turns a failure to forward into a refusal, or into `Moved` if the ask may be retried. */
const failed = (
  ask: Ask,
  cause: Cause.Cause<Refusal | Protocol.Moved | RpcClientError.RpcClientError>
): Effect.Effect<never, Refusal | Protocol.Moved> => {
  const error = Option.getOrUndefined(Cause.findErrorOption(cause))
  if (error?._tag === "Refusal" || error?._tag === "Moved") return Effect.fail(error)
  // An interruption means that the other replica ends. A socket error is a defect here: the message could not be written. Any other defect
  // is a bug, here or on the other replica.
  const isBroken = error !== undefined || Cause.hasInterruptsOnly(cause) ||
    Socket.isSocketError(Result.getOrUndefined(Cause.findDefect(cause)))
  if (isBroken) return Effect.fail(refusalOf(ask, "back end failed", outcomeUnknown))
  const message = "The replica of this session failed to answer; see the log of this gateway"
  return Effect.andThen(
    Effect.logError("A request to another replica failed with a defect", cause),
    Effect.fail(refusalOf(ask, "back end failed", message))
  )
}

/** An exchange whose events the other replica keeps until this one asks for them. */
const streamed = (
  { id, session, start }: typeof Protocol.Streamed.Type,
  client: Client,
  { ask, light }: Carried
): Effect.Effect<Exchange, never, Scope.Scope> =>
  Effect.flatMap(Effect.scope, (scope) => {
    let isOver = false
    const unanswered = new Map(requestsOf(ask).map((request) => [JsonRpc.idKey(request.id), request.id]))
    const note = ({ text }: Event) => {
      const message = unanswered.size > 0 ? JsonRpc.read(text) : undefined
      if (message?._tag !== "Response") return
      // The call of a light session goes on while it waits for input.
      const waits = light === true && Json.field(message.result, "resultType") === "input_required"
      if (!waits) unanswered.delete(JsonRpc.idKey(message.id))
    }
    /** After the link broke: each request without an answer gets an error. */
    const lost: Take = Effect.suspend(() => {
      isOver = true
      const errors = [...unanswered.values()].map((id) => JsonRpc.error(id, codeFor(ask), outcomeUnknown))
      return errors.length === 0 ? Cause.done() : Effect.succeed(errors.map(({ text }) => ({ text })))
    })
    const next = client.Next({ id })
    /** The `Next` that runs. It has a fiber of its own: an interrupted `take` loses no event, because the next `take` joins the fiber. */
    let asking: Fiber.Fiber<typeof Protocol.Events.Type, unknown> | undefined
    const joined = (fiber: NonNullable<typeof asking>): Take => {
      asking = fiber
      return Effect.flatMap(Fiber.await(fiber), (exit) => {
        asking = undefined
        if (Exit.isFailure(exit)) return lost
        const { done, events } = exit.value
        isOver = done
        events.forEach(note)
        return events.length === 0 ? take : Effect.succeed(events)
      })
    }
    const take: Take = Effect.suspend(() =>
      isOver
        ? Cause.done()
        : asking === undefined
        ? Effect.flatMap(Effect.forkIn(next, scope, { startImmediately: true }), joined)
        : joined(asking)
    )
    const reply = Effect.succeed({ _tag: "Events" as const, start, take })
    return Effect.acquireRelease(
      Effect.succeed({ session, reply }),
      () =>
        Effect.suspend(() =>
          isOver ? Effect.void : Effect.ignore(Effect.timeout(client.Abandon({ id }), abandonTimeout))
        )
    )
  })

/** The MCP specification of the later era reserves the range of the gateway's own code, so `internal` replaces it. */
const codeFor = ({ _tag }: Ask): number => _tag === "Call" ? JsonRpc.codes.internal : JsonRpc.codes.gateway

/** The refusal of an ask that another replica has not carried out. */
export const refusalOf = (ask: Ask, reason: Reason, message: string): Refusal =>
  refusal(reason, message, {
    id: idOf(ask),
    code: codeFor(ask),
    retryAfter: reason === "unavailable" ? retryAfter : undefined
  })
