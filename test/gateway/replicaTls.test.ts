/** The port of the replicas: who gets in, and what a stranger can do. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Layer, Option } from "effect"
import { RunnerAddress } from "effect/cluster"
import { RpcSerialization, RpcServer } from "effect/rpc"
import { connect } from "node:net"
import { connect as connectTls } from "node:tls"
import * as Links from "../../src/gateway/cluster/Links.ts"
import * as Protocol from "../../src/gateway/cluster/Protocol.ts"
import * as ReplicaTls from "../../src/gateway/cluster/ReplicaTls.ts"
import { stablePort } from "../kit/cluster/ports.ts"

const key = ReplicaTls.keyOf("a key that replicas share")
const serialization = RpcSerialization.layerSchemaBinary()

/** A replica that has session 7 and nothing else; the number of messages that have reached it. */
const start = Effect.gen(function*() {
  const seen = { messages: 0 }
  const unused = Effect.die("not asked in this test")
  const handlers = Protocol.Peers.toLayer({
    EndNumber: ({ number }) => Effect.sync(() => ++seen.messages > 0 && number === 7),
    CarryOut: () => unused,
    Next: () => unused,
    Abandon: () => unused,
    Sessions: () => unused
  })
  const port = yield* Effect.promise(stablePort)
  yield* Layer.build(
    RpcServer.layer(Protocol.Peers).pipe(
      Layer.provide([handlers, RpcServer.layerProtocolSocketServer]),
      Layer.provide(ReplicaTls.layerServer({ host: "127.0.0.1", port }, key))
    )
  )
  return { port, seen }
})

const endSeven = Effect.fnUntraced(function*(port: number, key: ReplicaTls.Key) {
  const links = yield* Links.make(() => RunnerAddress.make("127.0.0.1", port), key)
  const client = yield* links.to("other")
  return yield* client.EndNumber({ number: 7 })
})

/** Sends what a stranger might send, and waits until the replica closes the connection. */
const closedAfter = (port: number, bytes: Uint8Array | undefined) =>
  Effect.promise(() =>
    new Promise<void>((resolve) => {
      const socket = connect(port, "127.0.0.1")
      socket.on("error", () => {}).on("close", () => resolve())
      // Reads until the end, so that the close is noticed.
      socket.resume()
      if (bytes !== undefined) socket.write(bytes)
    })
  )

describe("the port of the replicas", () => {
  it.live("serves a replica with the same key, over TLS 1.3", () =>
    Effect.gen(function*() {
      const { port } = yield* start
      assert.isTrue(yield* endSeven(port, key))
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
    }).pipe(Effect.scoped, Effect.provide(serialization)))

  it.live("gives a replica with another key nothing, and reads no message of it", () =>
    Effect.gen(function*() {
      const { port, seen } = yield* start
      const error = yield* Effect.flip(endSeven(port, ReplicaTls.keyOf("a key of another gateway")))
      assert.strictEqual(error._tag, "Unreachable")
      assert.strictEqual(seen.messages, 0)
    }).pipe(Effect.scoped, Effect.provide(serialization)))

  it.live("closes the connection of a stranger who sends anything but a handshake", () =>
    Effect.gen(function*() {
      const { port, seen } = yield* start
      for (const bytes of [new Uint8Array(1_000_000), new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n")]) {
        yield* closedAfter(port, bytes)
      }
      assert.isTrue(yield* endSeven(port, key))
      assert.strictEqual(seen.messages, 1)
    }).pipe(Effect.scoped, Effect.provide(serialization)))

  it.live("closes a silent connection after five seconds, and serves replicas meanwhile", () =>
    Effect.gen(function*() {
      const { port } = yield* start
      const closed = Deferred.makeUnsafe<void>()
      yield* Effect.forkScoped(Effect.andThen(
        Effect.all(Array.from({ length: 100 }, () => closedAfter(port, undefined)), { concurrency: "unbounded" }),
        Deferred.succeed(closed, undefined)
      ))
      assert.isTrue(yield* endSeven(port, key))
      assert.isTrue(Option.isSome(yield* Effect.timeoutOption(Deferred.await(closed), "40 seconds")))
    }).pipe(Effect.scoped, Effect.provide(serialization)))
})
