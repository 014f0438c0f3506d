/** Does for other replicas, and for this one, what is addressed to what lives here: the engine's entity. */
import { Effect, Fiber, Option, Stream } from "effect"
import { Entity } from "effect/cluster"
import type { HttpServerResponse } from "effect/http"
import * as Residency from "../../internal/residency.ts"
import type { Carried, Host } from "../Placement.ts"
import * as Protocol from "./Protocol.ts"
import * as ReplicaName from "./ReplicaName.ts"

/** A process that is not gone by then is left to itself. */
const vacateTimeout = "15 seconds"
/** After this the asker is told that the answer is long in coming. */
const workingAfter = "5 seconds"

export interface Options {
  readonly host: Host
  /** Whether an asker knows the replicas' common secret. */
  readonly isOneOfUs: (pass: string) => boolean
  /** Whether what can move may still be served here. */
  readonly mayServe: Effect.Effect<boolean>
  /** The entities that are here by their shared id: what lives under an id holds its entity. */
  readonly residents: Map<string, Residency.Residency>
}

/** Serves for as long as the scope is open. */
export const layer = ({ host, isOneOfUs, mayServe, residents }: Options) => {
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

    const carryOut = (carried: Carried) =>
      Stream.unwrap(Effect.gen(function*() {
        const response = yield* Effect.forkScoped(host.carryOut(carried), { startImmediately: true })
        const soon = yield* Effect.timeoutOption(Fiber.join(response), workingAfter)
        if (Option.isSome(soon)) return piecesOf(soon.value)
        const later = Stream.unwrap(Effect.map(Fiber.join(response), piecesOf))
        return Stream.concat(Stream.succeed<Protocol.Piece>({ _tag: "Working" }), later)
      }))

    return Protocol.Gateway.of({
      CarryOut: ({ payload: { pass, ...carried } }) =>
        Stream.unwrap(Effect.gen(function*() {
          yield* admit(pass)
          if (!isShared) return carryOut(carried)
          if (!(yield* mayServe)) return yield* new Protocol.Moved()
          return carryOut(carried)
        })),
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

/** What is sent of a response. */
const piecesOf = ({ body, headers, status }: HttpServerResponse.HttpServerResponse): Stream.Stream<Protocol.Piece> => {
  const head = { _tag: "Head", status, headers: { ...headers } } as const
  switch (body._tag) {
    case "Stream":
      return Stream.concat(
        Stream.succeed<Protocol.Piece>(head),
        Stream.map(Stream.orDie(body.stream), (bytes): Protocol.Piece => ({ _tag: "Chunk", bytes }))
      )
    case "Uint8Array":
      return Stream.succeed({ ...head, body: body.body })
    default:
      return Stream.succeed({ ...head, body: new Uint8Array() })
  }
}
