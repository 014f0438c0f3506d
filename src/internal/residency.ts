/**
 * Keeps an entity of the cluster on its runner while something lives in it, however long nobody calls it.
 *
 * The engine reaps an entity without requests after its `maxIdleTime`, unless the entity's keep-alive is on. What turns
 * that on, `Entity.keepAlive`, sends a persisted message and so needs a `MessageStorage`; this is the same message, volatile.
 */
import type { Scope } from "effect"
import { Context, Effect, Latch, Option } from "effect"
import * as Entity from "effect/cluster/Entity"
import * as Envelope from "effect/cluster/Envelope"
import * as Message from "effect/cluster/Message"
import { Sharding } from "effect/cluster/Sharding"
import * as Headers from "effect/http/Headers"
import * as Rpc from "effect/rpc/Rpc"

/** What keeps one entity, from its activation to its end. */
export interface Residency {
  /** One more reason to stay. Only while a request of the entity runs: an entity that is still building cannot be called. */
  readonly hold: Effect.Effect<void>
  /** One reason less. After the last one the entity goes as every entity does, when it has been idle for `maxIdleTime`. */
  readonly release: Effect.Effect<void>
  /** Whether anything holds the entity. */
  readonly held: Effect.Effect<boolean>
  /** Waits until nothing does. */
  readonly released: Effect.Effect<void>
}

/** Found by its tag alone; without the annotation `Persisted` of `Entity.KeepAliveRpc`, no storage is asked for. */
const keepAliveRpc = Rpc.make(Entity.KeepAliveRpc._tag)

/**
 * The residency of the entity that is being built; it ends with the scope of its handlers. One function, for its parts share the
 * count of holds and the latches.
 */
export const make: Effect.Effect<Residency, never, Sharding | Entity.CurrentAddress | Scope.Scope> = Effect.gen(
  function*() {
    const sharding = yield* Sharding
    const address = yield* Entity.CurrentAddress
    const scope = yield* Effect.scope
    // None in the engine's test client, which reaps nothing.
    const latch = Option.getOrUndefined(yield* Effect.serviceOption(Entity.KeepAliveLatch))
    const free = Latch.makeUnsafe(true)
    let holds = 0
    // The engine's keep-alive: on from the arrival of the message until its answer, which comes after the latch was opened.
    let on = false
    let opened = true

    // Open while nothing holds: a keep-alive that another runner sent here, because its shard moved in between, ends at once.
    latch?.openUnsafe()

    const turnOn: Effect.Effect<void> = Effect.gen(function*() {
      on = true
      opened = false
      latch?.closeUnsafe()
      const message = new Message.OutgoingRequest({
        annotations: Context.empty(),
        rpc: keepAliveRpc,
        context: Context.empty(),
        envelope: Envelope.makeRequest<typeof keepAliveRpc>({
          requestId: yield* sharding.getSnowflake,
          address,
          tag: keepAliveRpc._tag,
          payload: undefined,
          headers: Headers.empty
        }),
        lastReceivedReply: Option.none(),
        respond: () => answered
      })
      // In a fiber of its own: while the shard moves, the engine tries again and again, until this entity ends.
      yield* sharding.sendOutgoing(message, true).pipe(
        Effect.catchCause((cause) => {
          on = false
          return Effect.logDebug("An entity could not be kept resident", cause)
        }),
        Effect.forkIn(scope, { startImmediately: true })
      )
    })

    // The engine turns off when it gets to it, not when the latch is opened. Who has come to hold in between is served now.
    const answered = Effect.suspend(() => {
      // Answered at once: it was on already.
      if (!opened) return Effect.void
      on = false
      return holds > 0 ? turnOn : Effect.void
    })

    return {
      hold: Effect.uninterruptible(Effect.suspend(() => {
        holds++
        free.closeUnsafe()
        if (latch === undefined) return Effect.void
        if (!on) return turnOn
        latch.closeUnsafe()
        return Effect.void
      })),
      release: Effect.sync(() => {
        holds--
        if (holds > 0) return
        opened = true
        latch?.openUnsafe()
        free.openUnsafe()
      }),
      held: Effect.sync(() => holds > 0),
      released: free.await
    }
  }
)
