/** The connections between replicas: one serves many questions, no question is sent twice, and strangers are kept out. */
import { assert, describe, it } from "@effect/vitest"
import type { Scope } from "effect"
import { Deferred, Effect, Fiber, Layer, Option, Schedule } from "effect"
import { RunnerAddress } from "effect/cluster"
import { RpcSerialization, RpcServer } from "effect/rpc"
import { connect } from "node:net"
import { connect as connectTls } from "node:tls"
import * as Links from "../../src/gateway/cluster/Links.ts"
import * as Protocol from "../../src/gateway/cluster/Protocol.ts"
import * as ReplicaTls from "../../src/gateway/cluster/ReplicaTls.ts"
import * as Cutter from "../kit/cluster/cutter.ts"
import { stablePort } from "../kit/cluster/ports.ts"

const key = ReplicaTls.keyOf("a key that replicas share")
const serialization = RpcSerialization.layerSchemaBinary()

/** A replica behind a cable. It answers every question with true, except 0, which it never answers. */
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
  return { links, cable, port: behind, seen, arrived: Deferred.await(arrived) }
})

const pause = Schedule.spaced("20 millis")

const ask = (links: Links.Links, number: number) =>
  Effect.scoped(Effect.flatMap(links.to("other"), (client) => client.EndNumber({ number })))

/** It may take a moment until it is known that a connection is gone. */
const askAgain = (links: Links.Links, number: number) => Effect.retry(ask(links, number), pause)

const withReplica = <A, E>(
  test: (
    replica: Effect.Success<typeof startReplica>
  ) => Effect.Effect<A, E, Scope.Scope | RpcSerialization.RpcSerialization>
) => Effect.scoped(Effect.flatMap(startReplica, test)).pipe(Effect.provide(serialization))

describe("links between replicas", () => {
  it.live("all messages to a replica share one connection, and a broken one is replaced", () =>
    withReplica(Effect.fnUntraced(function*({ cable, links, seen }) {
      const answers = yield* Effect.all([1, 2, 3].map((number) => ask(links, number)), { concurrency: "unbounded" })
      assert.deepStrictEqual([...answers, cable.total()], [true, true, true, 1])
      cable.cut()
      cable.mend()
      assert.isTrue(yield* askAgain(links, 4))
      assert.deepStrictEqual([seen.questions, cable.total()], [4, 2])
    })))

  it.live("a message whose connection breaks fails, and is not sent again", () =>
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

  it.live("a message to an unreachable replica fails at once, and the next message tries again", () =>
    withReplica(Effect.fnUntraced(function*({ cable, links, seen }) {
      cable.cut()
      assert.strictEqual((yield* Effect.flip(ask(links, 1)))._tag, "Unreachable")
      assert.strictEqual((yield* Effect.flip(Effect.scoped(links.to("nobody"))))._tag, "Unreachable")
      cable.mend()
      assert.isTrue(yield* askAgain(links, 2))
      assert.strictEqual(seen.questions, 1)
    })))

  it.live("an interrupted message is cancelled at the other replica, and the connection stays", () =>
    withReplica(Effect.fnUntraced(function*({ arrived, cable, links, seen }) {
      const waiting = yield* Effect.forkScoped(ask(links, 0))
      yield* arrived
      yield* Fiber.interrupt(waiting)
      yield* Effect.repeat(Effect.sync(() => seen.interrupted), { until: (count) => count === 1, schedule: pause })
      assert.isTrue(yield* ask(links, 1))
      assert.strictEqual(cable.total(), 1)
    })))
})

/** Sends bytes that are no handshake, and waits until the replica closes the connection. */
const closedAfter = (port: number, bytes?: Uint8Array) =>
  Effect.promise(() =>
    new Promise<void>((resolve) => {
      const socket = connect(port, "127.0.0.1")
      socket.on("error", () => {}).on("close", () => resolve())
      // Reads until the end, so that the close is noticed.
      socket.resume()
      if (bytes !== undefined) socket.write(bytes)
    })
  )

describe("the port for other replicas", () => {
  it.live("the port speaks TLS 1.3 with a peer that has the key", () =>
    withReplica(Effect.fnUntraced(function*({ port }) {
      const versions = yield* Effect.callback<ReadonlyArray<unknown>>((resume) => {
        const socket = connectTls({
          port,
          host: "127.0.0.1",
          ciphers: "TLS_AES_128_GCM_SHA256",
          pskCallback: () => ({ psk: key, identity: "replica" }),
          checkServerIdentity: () => undefined
        })
        socket.on("secureConnect", () => {
          resume(Effect.succeed([socket.getProtocol(), socket.getCipher().name]))
          socket.destroy()
        })
      })
      assert.deepStrictEqual(versions, ["TLSv1.3", "TLS_AES_128_GCM_SHA256"])
    })))

  it.live("the port reads no message of a replica with another key", () =>
    withReplica(Effect.fnUntraced(function*({ port, seen }) {
      const links = yield* Links.make(
        () => RunnerAddress.make("127.0.0.1", port),
        ReplicaTls.keyOf("a key of another gateway")
      )
      assert.strictEqual((yield* Effect.flip(ask(links, 7)))._tag, "Unreachable")
      assert.strictEqual(seen.questions, 0)
    })))

  it.live("the port closes a connection that sends anything but a handshake", () =>
    withReplica(Effect.fnUntraced(function*({ links, port, seen }) {
      for (const bytes of [new Uint8Array(1_000_000), new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n")]) {
        yield* closedAfter(port, bytes)
      }
      assert.isTrue(yield* ask(links, 7))
      assert.strictEqual(seen.questions, 1)
    })))

  it.live("the port closes a silent connection after five seconds, and serves replicas meanwhile", () =>
    withReplica(Effect.fnUntraced(function*({ links, port }) {
      const strangers = Array.from({ length: 100 }, () => closedAfter(port))
      const closed = yield* Effect.forkScoped(Effect.all(strangers, { concurrency: "unbounded" }))
      assert.isTrue(yield* ask(links, 7))
      assert.isTrue(Option.isSome(yield* Effect.timeoutOption(Fiber.join(closed), "40 seconds")))
    })))
})
