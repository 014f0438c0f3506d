/** The engine's keep-alive without a message storage: it is on while anything holds the entity, however fast that changes. */
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Option } from "effect"
import * as Entity from "effect/cluster/Entity"
import * as Envelope from "effect/cluster/Envelope"
import * as Message from "effect/cluster/Message"
import { Sharding } from "effect/cluster/Sharding"
import * as Headers from "effect/http/Headers"
import * as Rpc from "effect/rpc/Rpc"
import { TestClock } from "effect/testing"
import * as Residency from "../../src/internal/residency.ts"
import * as Cluster from "../kit/cluster.ts"

const Thing = Entity.make("Thing", [Rpc.make("Hold"), Rpc.make("Swap"), Rpc.make("Release"), Rpc.make("Stray")])

/** A keep-alive that nobody here asked for: sent by a runner that believed the entity was its own. */
const stray = Effect.gen(function*() {
  const sharding = yield* Sharding
  const rpc = Rpc.make(Entity.KeepAliveRpc._tag)
  const message = new Message.OutgoingRequest({
    annotations: Context.empty(),
    rpc,
    context: Context.empty(),
    envelope: Envelope.makeRequest<typeof rpc>({
      requestId: yield* sharding.getSnowflake,
      address: yield* Entity.CurrentAddress,
      tag: rpc._tag,
      payload: undefined,
      headers: Headers.empty
    }),
    lastReceivedReply: Option.none(),
    respond: () => Effect.void
  })
  yield* Effect.orDie(sharding.sendOutgoing(message, true))
})

const start = Effect.gen(function*() {
  const things = Thing.toLayer(Effect.gen(function*() {
    const { hold, release } = yield* Residency.make
    const address = yield* Entity.CurrentAddress
    return {
      Hold: () => hold,
      // In one go, before the engine has noticed that the last one let go.
      Swap: () => Effect.andThen(release, hold),
      Release: () => release,
      Stray: () => Effect.provideService(stray, Entity.CurrentAddress, address)
    }
  }))
  const { sharding } = yield* Cluster.make().start("a", things)
  yield* TestClock.adjust("10 seconds")
  const thing = (yield* sharding.makeClient(Thing))("it")
  /** Whether the entity is there long after its last request. */
  const stays = Effect.andThen(TestClock.adjust("5 minutes"), Effect.map(sharding.activeEntityCount, (n) => n === 1))
  return { thing, stays }
})

describe("an entity", () => {
  it.effect("stays until the last of those who hold it lets go", () =>
    Effect.gen(function*() {
      const { stays, thing } = yield* start
      yield* thing.Hold()
      yield* thing.Hold()
      yield* thing.Release()
      assert.isTrue(yield* stays)
      yield* thing.Release()
      assert.isFalse(yield* stays)
    }))

  it.effect("stays when it is held again the moment the last one let go", () =>
    Effect.gen(function*() {
      const { stays, thing } = yield* start
      yield* thing.Hold()
      yield* thing.Swap()
      assert.isTrue(yield* stays)
      yield* Effect.repeat(thing.Swap(), { times: 9 })
      assert.isTrue(yield* stays)
      yield* thing.Release()
      assert.isFalse(yield* stays)
    }))

  it.effect("does not stay for a keep-alive that came astray, nor lose its own by one", () =>
    Effect.gen(function*() {
      const { stays, thing } = yield* start
      yield* thing.Stray()
      assert.isFalse(yield* stays)
      yield* thing.Hold()
      yield* thing.Stray()
      assert.isTrue(yield* stays)
      yield* thing.Release()
      assert.isFalse(yield* stays)
    }))
})
