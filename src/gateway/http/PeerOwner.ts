/**
 * Detects requests from processes of the gateway's own user on this machine. Linux lists the user of each socket in
 * `/proc/net/tcp`. On other systems no request counts as the own user's.
 */
import type { FileSystem } from "effect"
import { Effect } from "effect"
import type { HttpServerRequest } from "effect/http"
import type { Socket } from "node:net"
import * as Access from "./Access.ts"
import { socketOf } from "./EventStreamBody.ts"

/**
 * The user id of the socket with these ports on a loopback address, from the kernel's table. Undefined if several users
 * have such a socket: sockets on different addresses may have the same ports.
 */
export const userOf = (table: string, localPort: number, remotePort: number): number | undefined => {
  const users = new Set<number>()
  for (const line of table.split("\n")) {
    const [, local = "", remote = "", , , , , user = ""] = line.trim().split(/\s+/)
    const at = [local, remote].map((address) => Number.parseInt(address.split(":")[1] ?? "", 16))
    if (at[0] === localPort && at[1] === remotePort && isLoopback(local) && /^\d+$/.test(user)) users.add(Number(user))
  }
  const [user] = users
  return users.size === 1 ? user : undefined
}

/**
 * The table writes an address in words of four bytes, last byte first: 127.0.0.1 is `0100007F`, ::1 `0000…01000000`.
 */
const isLoopback = (address: string): boolean =>
  /^(0{16}FFFF0000)?[0-9A-F]{6}7F:/.test(address) || /^0{24}01000000:/.test(address)

/** The results by socket. The whole process shares them, because the owner of a socket never changes. */
const known = new WeakMap<Socket, boolean>()

/** Headers that proxies add. */
const relayed = ["forwarded", "x-forwarded-for", "x-real-ip", "via", "cf-connecting-ip"]

/** True if a request comes from a process of the gateway's own user. Reads the tables once for each connection. */
export const isOwnUser = Effect.fnUntraced(function*(
  fs: FileSystem.FileSystem,
  request: Pick<HttpServerRequest.HttpServerRequest, "headers" | "source">
) {
  // A proxy of the same user may forward requests of other users.
  if (relayed.some((name) => request.headers[name] !== undefined)) return false
  const socket = socketOf(request)
  const from = (socket?.remoteAddress ?? "").replace(/^::ffff:/, "")
  if (socket?.remotePort === undefined || socket.localPort === undefined || !Access.isLoopback(from)) return false
  const before = known.get(socket)
  if (before !== undefined) return before
  const read = (file: string) => Effect.orElseSucceed(fs.readFileString(file), () => "")
  const { localPort, remotePort } = socket
  const table = `${yield* read("/proc/net/tcp")}\n${yield* read("/proc/net/tcp6")}`
  // Looks for the client's socket: its local port is the remote port here.
  const user = userOf(table, remotePort, localPort)
  const own = user !== undefined && user === process.getuid?.()
  known.set(socket, own)
  return own
})
