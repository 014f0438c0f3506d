/** Does for other replicas, and for this one, what is addressed to what lives here: the engine's entity. */
import { Effect, Exit, Fiber, Option, Scope, Stream } from "effect"
import { Entity } from "effect/cluster"
import type { HttpServerResponse } from "effect/http"
import { randomUUID } from "node:crypto"
import * as Residency from "../../internal/residency.ts"
import type { Carried, Host } from "../sessions/Placement.ts"
import * as Protocol from "./Protocol.ts"
import * as ReplicaName from "./ReplicaName.ts"

/** A process that is not gone by then is left to itself. */
const vacateTimeout = "15 seconds"
/** After this the asker is told that the answer is long in coming; and for so long it may take to ask for it. */
const patience = "5 seconds"

export interface Options {
  readonly host: Host
  /** Whether an asker knows the replicas' common secret. */
  readonly isOneOfUs: (pass: string) => boolean
  /** Whether what can move may still be served here. */
  readonly mayServe: Effect.Effect<boolean>
  /** The entities that are here by their shared id: what lives under an id holds its entity. */
  readonly residents: Map<string, Residency.Residency>
  /** Counts the requests that are carried out for what can move. */
  readonly hosted: { count: number }
}

/** Serves for as long as the scope is open. */
export const layer = ({ host, hosted, isOneOfUs, mayServe, residents }: Options) => {
  const admit = (pass: string) => isOneOfUs(pass) ? Effect.void : new Protocol.NotOneOfUs()

  const handlers = Effect.gen(function*() {
    const { entityId: address } = yield* Entity.CurrentAddress
    const isShared = !ReplicaName.isName(address)
    if (isShared) {
      const residency = yield* Residency.make
      // The engine ends an entity whose shard moves, when its running requests are over, and gives the lock back only then.
      yield* Effect.acquireRelease(
        Effect.sync(() => residents.set(address, residency)),
        () =>
          Effect.andThen(host.vacate(address), residency.released).pipe(
            Effect.timeoutOption(vacateTimeout),
            Effect.andThen(Effect.sync(() => residents.get(address) === residency && residents.delete(address)))
          )
      )
    }

    const scope = yield* Effect.scope
    /** The responses that are still to be followed. */
    const later = new Map<string, Pending>()

    const carryOut = (carried: Carried) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function*() {
          const own = yield* Scope.fork(scope)
          const response = yield* Effect.forkIn(restore(Scope.provide(host.carryOut(carried), own)), own, {
            startImmediately: true
          })
          const soon = yield* restore(Effect.timeoutOption(Fiber.join(response), patience)).pipe(
            Effect.onError(() => Scope.close(own, Exit.void))
          )
          if (Option.isSome(soon) && soon.value.body._tag !== "Stream") {
            yield* Scope.close(own, Exit.void)
            return headOf(soon.value)
          }
          const id = randomUUID()
          const abandon = Effect.suspend(() => later.delete(id) ? Scope.close(own, Exit.void) : Effect.void)
          yield* Effect.forkIn(Effect.delay(abandon, patience), own)
          later.set(id, { response, scope: own })
          return { _tag: "Later", id } as const
        })
      )

    const follow = (id: string) =>
      Stream.unwrap(
        Effect.map(
          Effect.acquireRelease(
            Effect.sync(() => {
              const pending = later.get(id)
              later.delete(id)
              return pending
            }),
            (pending) => pending === undefined ? Effect.void : Scope.close(pending.scope, Exit.void)
          ),
          (pending) =>
            pending === undefined ? Stream.empty : Stream.unwrap(Effect.map(Fiber.join(pending.response), piecesOf))
        )
      )

    return Protocol.Gateway.of({
      CarryOut: ({ payload: { pass, ...carried } }) =>
        Effect.gen(function*() {
          yield* admit(pass)
          if (!isShared) return yield* carryOut(carried)
          if (!(yield* mayServe)) return yield* new Protocol.Moved()
          hosted.count++
          return yield* Effect.ensuring(carryOut(carried), Effect.sync(() => hosted.count--))
        }),
      Follow: ({ payload: { id, pass } }) => Stream.unwrap(Effect.as(admit(pass), follow(id))),
      Sessions: ({ payload }) =>
        Effect.andThen(admit(payload.pass), Effect.map(host.sessions, (sessions) => JSON.stringify(sessions))),
      EndNumber: ({ payload }) => Effect.andThen(admit(payload.pass), host.endNumber(payload.number))
    })
  })

  return Protocol.Gateway.toLayer(handlers, {
    concurrency: "unbounded",
    mailboxCapacity: "unbounded",
    disableFatalDefects: true,
    maxIdleTime: "1 minute"
  })
}

/** A response that has not been sent yet. */
interface Pending {
  readonly response: Fiber.Fiber<HttpServerResponse.HttpServerResponse>
  readonly scope: Scope.Closeable
}

const headOf = ({ body, headers, status }: HttpServerResponse.HttpServerResponse): typeof Protocol.Head.Type => {
  const head = { _tag: "Head", status, headers: { ...headers } } as const
  switch (body._tag) {
    case "Stream":
      return head
    case "Uint8Array":
      return { ...head, body: body.body }
    default:
      return { ...head, body: new Uint8Array() }
  }
}

const piecesOf = (response: HttpServerResponse.HttpServerResponse): Stream.Stream<Protocol.Piece> => {
  const head = Stream.succeed<Protocol.Piece>(headOf(response))
  return response.body._tag !== "Stream" ? head : Stream.concat(
    head,
    Stream.map(Stream.orDie(response.body.stream), (bytes): Protocol.Piece => ({ _tag: "Chunk", bytes }))
  )
}
