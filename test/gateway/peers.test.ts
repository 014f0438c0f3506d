/** The watch for peers that are no longer there. */
import { NodeFileSystem } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, FileSystem, Logger, Stream } from "effect"
import { TestClock } from "effect/testing"
import { connect, createServer } from "node:net"
import type { Socket } from "node:net"
import * as EventStreamBody from "../../src/gateway/fronts/EventStreamBody.ts"
import * as PeerWatch from "../../src/gateway/fronts/PeerWatch.ts"
import * as Kit from "../kit/gateway/gateway.ts"

describe("the watch for peers", () => {
  it("finds real connections in the kernel's table, and takes none for vanished that lives, reads or not", async () => {
    const fs = Effect.runSync(Effect.provide(FileSystem.FileSystem, NodeFileSystem.layer))
    const server = createServer().listen(0, "127.0.0.1")
    await Kit.eventually("the server listens", () => server.listening)
    const address = server.address()
    const accepted = new Promise<Socket>((resolve) => server.on("connection", resolve))
    const far = connect(typeof address === "object" && address !== null ? address.port : 0, "127.0.0.1").pause()
    const near = await accepted
    near.write(Buffer.alloc(64 * 1024 * 1024))
    const { localPort = 0, remotePort = 0 } = near
    const known = PeerWatch.retransmissions(await Effect.runPromise(fs.readFileString("/proc/net/tcp")))
    assert.strictEqual(known.get(`${localPort},${remotePort}`), 0)
    const hasVanished = await Effect.runPromise(PeerWatch.look(fs))
    assert.isFalse(hasVanished(localPort, remotePort))
    assert.isFalse(hasVanished(1, 1))
    near.destroy()
    far.destroy()
    server.close()
  })

  it("reads how often the kernel sent in vain, the least of what it cannot tell apart", () => {
    const table = [
      "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
      "   0: 0100007F:20E4 0100007F:C001 01 0000002A:00000000 01:00000014 00000006     0        0 1 2 0",
      "   1: 0100007F:20E4 0100007F:C002 01 00000000:00000010 00:00000000 00000000     0        0 3 2 0",
      "   2: 0100007F:20E4 0200007F:C003 01 00000001:00000000 00:00000000 0000000A     0        0 4 2 0",
      "   3: 0100007F:20E4 0300007F:C003 01 00000002:00000000 00:00000000 00000001     0        0 5 2 0",
      ""
    ].join("\n")
    assert.deepStrictEqual([...PeerWatch.retransmissions(table)], [["8420,49153", 6], ["8420,49154", 0], [
      "8420,49155",
      1
    ]])
    assert.strictEqual(PeerWatch.retransmissions("").size, 0)
    const fs = FileSystem.makeNoop({ readFileString: () => Effect.succeed(table) })
    const hasVanished = Effect.runSync(PeerWatch.look(fs))
    assert.deepStrictEqual([49153, 49154, 49155].map((port) => hasVanished(8420, port)), [true, false, false])
  })

  const row = (remotePort: number, count: string) =>
    `   0: 0100007F:20E4 0100007F:${remotePort.toString(16).toUpperCase()} 01 0:0 01:14 ${count} 0 0 1 2 0`
  /** A body that is open, and whether it has been cut. */
  const body = (remote: number, disconnect: Effect.Effect<void> = Effect.void) => {
    const state = { cut: false }
    const open: EventStreamBody.OpenBody = {
      client: {
        ports: { local: 8420, remote },
        disconnect: Effect.andThen(Effect.sync(() => (state.cut = true)), disconnect)
      },
      writtenAt: undefined
    }
    return { open, state }
  }

  it.effect("reads each table once a round, however many streams are open, and not at all while none is", () =>
    Effect.gen(function*() {
      const read: Array<string> = []
      const fs = FileSystem.makeNoop({
        readFileString: (file) =>
          Effect.sync(() => {
            read.push(file)
            return row(49153, "00000006")
          })
      })
      const bodies = new Set<EventStreamBody.OpenBody>()
      yield* Effect.forkChild(EventStreamBody.watch(bodies, Duration.seconds(30), fs))
      yield* TestClock.adjust("15 seconds")
      assert.deepStrictEqual(read, [])
      const three = [body(49152), body(49153), body(49154)]
      for (const { open } of three) bodies.add(open)
      yield* TestClock.adjust("15 seconds")
      assert.deepStrictEqual(read, ["/proc/net/tcp", "/proc/net/tcp6"])
      assert.deepStrictEqual(three.map(({ state }) => state.cut), [false, true, false])
    }))

  it.effect("a check that dies is not the end of the watch, nor is a table that cannot be read", () =>
    Effect.gen(function*() {
      let dies = false
      const fs = FileSystem.makeNoop({
        readFileString: () => dies ? Effect.die("no table") : Effect.succeed(row(49153, "00000006"))
      })
      const first = body(49153, Effect.die("cannot be cut"))
      const second = body(49153)
      const bodies = new Set([first.open, second.open])
      yield* Effect.forkChild(EventStreamBody.watch(bodies, Duration.seconds(30), fs))
      yield* TestClock.adjust("15 seconds")
      assert.deepStrictEqual([first.state.cut, second.state.cut], [true, true])
      dies = true
      yield* TestClock.adjust("15 seconds")
      dies = false
      const third = body(49153)
      bodies.add(third.open)
      yield* TestClock.adjust("15 seconds")
      assert.isTrue(third.state.cut)
    }).pipe(Effect.provide(Logger.layer([]))))

  it.effect("cuts a client that reads nothing after one to one and a half times the time, also one that was only greeted", () =>
    Effect.gen(function*() {
      const fs = FileSystem.makeNoop({ readFileString: () => Effect.succeed("") })
      const bodies = new Set<EventStreamBody.OpenBody>()
      const { open: { client }, state } = body(49153)
      yield* Effect.forkChild(EventStreamBody.watch(bodies, Duration.seconds(30), fs))
      const stream = EventStreamBody.make(Effect.never, {
        heartbeat: Duration.hours(1),
        bodies,
        greetAfter: Duration.zero,
        until: undefined,
        client
      })
      const pull = yield* Stream.toPull(stream)
      yield* TestClock.adjust("7 seconds")
      assert.strictEqual(new TextDecoder().decode((yield* pull)[0]), ": \n\n")
      yield* TestClock.adjust("29 seconds")
      assert.isFalse(state.cut)
      yield* TestClock.adjust("16 seconds")
      assert.isTrue(state.cut)
    }))
})
