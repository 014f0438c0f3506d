/** Has requests carried out by other replicas, and gives their answers to the clients as they come. */
import { Cause, Clock, Duration, Effect, Option, Queue, Result } from "effect"
import type { Scope } from "effect"
import { HttpServerResponse } from "effect/http"
import * as EventStreamBody from "../http/EventStreamBody.ts"
import type { Refusal } from "../http/Refusals.ts"
import { refuse, retryLater } from "../http/Refusals.ts"
import * as JsonRpc from "../messages/JsonRpc.ts"
import type { Asked, Carried } from "../sessions/Placement.ts"
import { OutcomeUnknown, Unreachable } from "./Delivery.ts"
import * as Protocol from "./Protocol.ts"

type Response = HttpServerResponse.HttpServerResponse
type Pieces<E> = Queue.Dequeue<Protocol.Piece, E | Cause.Done>

/** How often it is looked whether an answer can still come. */
const checkInterval = "1 second"

const moving = "The session is moving to another replica"

export interface Asking {
  /**
   * Has whoever has an address carry a request out. What moves is waited for; `check` looks now and then whether it is worth while.
   */
  readonly ask: (
    address: string,
    asked: Asked,
    check: Effect.Effect<void, Refusal>
  ) => Effect.Effect<Response, Refusal, Scope.Scope>
  readonly refuse: (carried: Carried, message: string) => Effect.Effect<never, Refusal>
}

export const make = Effect.fnUntraced(function*(options: {
  readonly pass: string
  /** How long a request waits for what moves. */
  readonly patience: Duration.Duration
}) {
  const client = yield* Protocol.Gateway.client
  const clock = yield* Clock.Clock
  const patience = Duration.toMillis(options.patience)

  const ask: Asking["ask"] = (address, { carried, stream }, check) => {
    const since = clock.currentTimeMillisUnsafe()
    const isTooLong = () => clock.currentTimeMillisUnsafe() - since >= patience
    const whileWorthWhile = Effect.forever(Effect.gen(function*() {
      yield* Effect.sleep(checkInterval)
      yield* check
      if (isTooLong()) return yield* refuseCarried(carried, 503, moving)
    }))
    const attempt: Effect.Effect<Response, Refusal, Scope.Scope> = Effect.suspend(() => {
      const replica = client(address)
      const answer = Effect.raceFirst(replica.CarryOut({ ...carried, pass: options.pass }), whileWorthWhile)
      const answered = Effect.flatMap(answer, (answer) =>
        answer._tag === "Head"
          ? Effect.succeed(wholeResponse(answer))
          : Effect.flatMap(
            replica.Follow({ pass: options.pass, id: answer.id }, { asQueue: true }),
            (pieces) => Effect.flatMap(Queue.take(pieces), (head) => responseOf(head, pieces, { carried, stream }))
          ))
      return Effect.catchCause(answered, (cause) => {
        if (Cause.hasInterruptsOnly(cause)) return Effect.interrupt
        const error = Option.getOrUndefined(Cause.findErrorOption(cause))
        switch (error?._tag) {
          case "Refusal":
            return Effect.fail(error)
          case "Moved":
            return isTooLong()
              ? refuseCarried(carried, 503, moving)
              : Effect.andThen(Effect.sleep("100 millis"), attempt)
          case "NotOneOfUs":
            return Effect.andThen(Effect.logError(error.message), refuseCarried(carried, 502, error.message))
          case undefined:
            return brokenOff(carried, cause)
          default:
            // The engine's own: this replica is leaving, or the other one has too much to do.
            return refuseCarried(carried, 503, moving)
        }
      })
    })
    return attempt
  }

  const asking: Asking = { ask, refuse: (carried, message) => refuseCarried(carried, 503, message) }
  return asking
})

const brokenOff = (carried: Carried, cause: Cause.Cause<unknown>): Effect.Effect<never, Refusal> => {
  const defect = Result.getOrUndefined(Cause.findDefect(cause))
  if (defect instanceof Unreachable) return refuseCarried(carried, 503, defect.message)
  if (defect instanceof OutcomeUnknown) return refuseCarried(carried, 502, defect.message)
  return Effect.andThen(
    Effect.logError("A request to another replica died", cause),
    refuseCarried(carried, 502, "The replica of this session could not answer")
  )
}

const wholeResponse = ({ body = new Uint8Array(), headers, status }: typeof Protocol.Head.Type): Response =>
  body.length === 0
    ? HttpServerResponse.empty({ status, headers })
    : HttpServerResponse.uint8Array(body, { status, headers, contentType: headers["content-type"] })

/** The response whose pieces come. */
const responseOf = <E>(
  head: Protocol.Piece,
  pieces: Pieces<E>,
  { carried, stream }: Asked
): Effect.Effect<Response, Refusal> => {
  // The head is always the first.
  if (head._tag !== "Head") return refuseCarried(carried, 502, "The replica of this session could not answer")
  if (head.body !== undefined) return Effect.succeed(wholeResponse(head))
  const { headers, status } = head
  const lost = () => {
    const id = idOf(carried)
    const error = JsonRpc.error(id ?? null, JsonRpc.codes.gateway, "The replica of this session has gone")
    return id === undefined ? Cause.done() : Effect.succeed([EventStreamBody.lastEvent(error)] as const)
  }
  let isOver = false
  const take: EventStreamBody.Take = Effect.suspend(() => {
    if (isOver) return Cause.done()
    return Effect.matchCauseEffect(Queue.takeAll(pieces), {
      onSuccess: (all) => {
        const [head, ...rest] = all.flatMap((piece) => piece._tag === "Chunk" ? [piece.bytes] : [])
        return head === undefined ? take : Effect.succeed([head, ...rest] as const)
      },
      onFailure: (cause) => {
        if (Cause.hasInterruptsOnly(cause)) return Effect.interrupt
        isOver = true
        const error = Option.getOrUndefined(Cause.findErrorOption(cause))
        return Cause.isDone(error) ? Cause.done() : lost()
      }
    })
  })
  // The other replica sends the heartbeats.
  const body_ = EventStreamBody.make(take, { ...stream, greet: false, heartbeat: Duration.infinity })
  return Effect.succeed(HttpServerResponse.stream(body_, { status, headers, contentType: headers["content-type"] }))
}

/** The id of a carried request, for who has to be told that it failed. */
export const idOf = (carried: Carried): JsonRpc.Id | undefined => {
  const message = Option.getOrUndefined(Option.map(JsonRpc.parse(carried.body), JsonRpc.classify))
  return message?._tag === "Request" ? message.id : undefined
}

const refuseCarried = (carried: Carried, status: number, message: string): Effect.Effect<never, Refusal> => {
  const id = idOf(carried)
  return refuse(status, message, {
    ...(id === undefined ? {} : { id }),
    // Codes below -32000 are the specification's own in the later era.
    code: carried.headers["mcp-method"] === undefined ? JsonRpc.codes.gateway : JsonRpc.codes.internal,
    headers: status === 503 ? retryLater : {}
  })
}
