/** The connections between replicas: that one serves for many questions, and that no question is sent twice. */
import { assert, describe, it } from "@effect/vitest"
import type { Scope } from "effect"
import { Deferred, Effect, Fiber, Layer, Schedule } from "effect"
import { RunnerAddress } from "effect/cluster"
import { RpcSerialization, RpcServer } from "effect/rpc"
import * as Links from "../../src/gateway/cluster/Links.ts"
import * as Protocol from "../../src/gateway/cluster/Protocol.ts"
import * as ReplicaTls from "../../src/gateway/cluster/ReplicaTls.ts"
import * as Cutter from "../kit/cluster/cutter.ts"
import { stablePort } from "../kit/cluster/ports.ts"

const key = ReplicaTls.keyOf("a key that replicas share")
const serialization = RpcSerialization.layerSchemaBinary()

/** A replica behind a cable: it says yes to every question but the 0, which it never answers. */
const startReplica = Effect.gen(function*() {
  const seen = { questions: 0, interrupted: 0 }
  const arrived = Deferred.makeUnsafe<void>()
  const unused = Effect.die("not asked in this test")
  const handlers = Protocol.Peers.toLayer({
    EndNumber: ({ number }) =>
      Effect.suspend(() => {
        seen.questions++
        if (number !== 0) return Effect.succeed(true)
        Deferred.doneUnsafe(arrived, Effect.void)
        return Effect.onInterrupt(Effect.never, () => Effect.sync(() => seen.interrupted++))
      }),
    CarryOut: () => unused,
    Next: () => unused,
    Abandon: () => unused,
    Sessions: () => unused
  })
  const port = yield* Effect.promise(stablePort)
  const behind = yield* Effect.promise(stablePort)
  yield* Layer.build(
    RpcServer.layer(Protocol.Peers).pipe(
      Layer.provide([handlers, RpcServer.layerProtocolSocketServer]),
      Layer.provide(ReplicaTls.layerServer({ host: "127.0.0.1", port: behind }, key)),
      Layer.provide(serialization)
    )
  )
  const cable = yield* Effect.acquireRelease(
    Effect.promise(() => Cutter.start(port, behind)),
    ({ stop }) => Effect.promise(stop)
  )
  const links = yield* Links.make((name) => name === "other" ? RunnerAddress.make("127.0.0.1", port) : undefined, key)
  return { links, cable, seen, arrived: Deferred.await(arrived) }
})

const pause = Schedule.spaced("20 millis")

const ask = (links: Links.Links, number: number) =>
  Effect.scoped(Effect.flatMap(links.to("other"), (client) => client.EndNumber({ number })))

/** It may take a moment until it is known that a connection is gone. */
const askAgain = (links: Links.Links, number: number) => Effect.retry(ask(links, number), pause)

const withReplica = <A, E>(
  test: (replica: Effect.Success<typeof startReplica>) => Effect.Effect<A, E, Scope.Scope>
) => Effect.scoped(Effect.flatMap(startReplica, test)).pipe(Effect.provide(serialization))

describe("links between replicas", () => {
  it.live("share one connection to each replica, and open another one when it is gone", () =>
    withReplica(Effect.fnUntraced(function*({ cable, links, seen }) {
      const answers = yield* Effect.all([1, 2, 3].map((number) => ask(links, number)), { concurrency: "unbounded" })
      assert.deepStrictEqual([...answers, cable.total()], [true, true, true, 1])
      cable.cut()
      cable.mend()
      assert.isTrue(yield* askAgain(links, 4))
      assert.deepStrictEqual([seen.questions, cable.total()], [4, 2])
    })))

  it.live("fail a question that is on its way when the connection breaks, and do not send it again", () =>
    withReplica(Effect.fnUntraced(function*({ arrived, cable, links, seen }) {
      const waiting = yield* Effect.forkScoped(Effect.flip(ask(links, 0)))
      yield* arrived
      cable.cut()
      cable.mend()
      assert.strictEqual((yield* Fiber.join(waiting))._tag, "RpcClientError")
      assert.isTrue(yield* askAgain(links, 1))
      assert.strictEqual(seen.questions, 2)
      yield* Effect.repeat(Effect.sync(() => seen.interrupted), { until: (count) => count === 1, schedule: pause })
    })))

  it.live("say at once that a replica cannot be reached, and try again for the next question", () =>
    withReplica(Effect.fnUntraced(function*({ cable, links, seen }) {
      cable.cut()
      assert.strictEqual((yield* Effect.flip(ask(links, 1)))._tag, "Unreachable")
      assert.strictEqual((yield* Effect.flip(Effect.scoped(links.to("nobody"))))._tag, "Unreachable")
      cable.mend()
      assert.isTrue(yield* askAgain(links, 2))
      assert.strictEqual(seen.questions, 1)
    })))

  it.live("take a question back when the asker is interrupted, and keep the connection", () =>
    withReplica(Effect.fnUntraced(function*({ arrived, cable, links, seen }) {
      const waiting = yield* Effect.forkScoped(ask(links, 0))
      yield* arrived
      yield* Fiber.interrupt(waiting)
      yield* Effect.repeat(Effect.sync(() => seen.interrupted), { until: (count) => count === 1, schedule: pause })
      assert.isTrue(yield* ask(links, 1))
      assert.strictEqual(cable.total(), 1)
    })))
})
