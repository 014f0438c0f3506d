/**
 * Tells whether a request comes from a process of the gateway's own user on this machine. Linux says in `/proc/net/tcp` whose
 * a socket is; elsewhere nobody can be told apart here.
 */
import type { FileSystem } from "effect"
import { Effect } from "effect"
import type { HttpServerRequest } from "effect/http"
import type { Socket } from "node:net"
import { socketOf } from "./EventStreamBody.ts"

/** The user of the socket with these ports on a loopback address, out of the kernel's table. */
export const userOf = (table: string, localPort: number, remotePort: number): number | undefined => {
  for (const line of table.split("\n")) {
    const [, local = "", remote = "", , , , , user = ""] = line.trim().split(/\s+/)
    const at = [local, remote].map((address) => Number.parseInt(address.split(":")[1] ?? "", 16))
    if (at[0] === localPort && at[1] === remotePort && isLoopback(local) && /^\d+$/.test(user)) return Number(user)
  }
  return undefined
}

/** Addresses stand there in words of four bytes, the last byte first: 127.0.0.1 is `0100007F`, ::1 `0000…01000000`. */
const isLoopback = (address: string): boolean =>
  /^(0{16}FFFF0000)?[0-9A-F]{6}7F:/.test(address) || /^0{24}01000000:/.test(address)

const known = new WeakMap<Socket, boolean>()

/** Asks once for a connection. */
export const isOwnUser = Effect.fnUntraced(function*(
  fs: FileSystem.FileSystem,
  request: HttpServerRequest.HttpServerRequest
) {
  const socket = socketOf(request)
  if (socket?.remotePort === undefined || socket.localPort === undefined) return false
  const before = known.get(socket)
  if (before !== undefined) return before
  const read = (file: string) => Effect.orElseSucceed(fs.readFileString(file), () => "")
  const { localPort, remotePort } = socket
  const table = `${yield* read("/proc/net/tcp")}\n${yield* read("/proc/net/tcp6")}`
  // The other end of it: what is remote here is local there.
  const own = userOf(table, remotePort, localPort) === process.getuid?.()
  known.set(socket, own)
  return own
})
