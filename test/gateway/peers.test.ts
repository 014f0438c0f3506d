/** The watch for peers that are no longer there. */
import { NodeFileSystem } from "@effect/platform-node"
import { Effect, FileSystem } from "effect"
import { connect, createServer } from "node:net"
import type { Socket } from "node:net"
import { assert, describe, it } from "vitest"
import * as PeerWatch from "../../src/gateway/PeerWatch.ts"
import * as Kit from "../kit/gateway.ts"

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
    assert.isFalse(await Effect.runPromise(PeerWatch.hasVanished(fs, localPort, remotePort)))
    assert.isFalse(await Effect.runPromise(PeerWatch.hasVanished(fs, 1, 1)))
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
    const vanished = (remotePort: number) => Effect.runSync(PeerWatch.hasVanished(fs, 8420, remotePort))
    assert.deepStrictEqual([49153, 49154, 49155].map(vanished), [true, false, false])
  })
})
