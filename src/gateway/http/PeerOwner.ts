/**
 * Tells whether a request comes from a process of the gateway's own user on this machine. Linux says in `/proc/net/tcp` whose
 * a socket is; elsewhere nobody can be told apart here.
 */
import type { FileSystem } from "effect"
import { Effect } from "effect"
import type { HttpServerRequest } from "effect/http"
import type { Socket } from "node:net"
import * as Access from "./Access.ts"
import { socketOf } from "./EventStreamBody.ts"

/**
 * The user of the socket with these ports on a loopback address, out of the kernel's table. Other addresses may have the same
 * ports: of several users it is none.
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

/** Addresses stand there in words of four bytes, the last byte first: 127.0.0.1 is `0100007F`, ::1 `0000…01000000`. */
const isLoopback = (address: string): boolean =>
  /^(0{16}FFFF0000)?[0-9A-F]{6}7F:/.test(address) || /^0{24}01000000:/.test(address)

/** Of the whole process: the owner of a socket never changes. */
const known = new WeakMap<Socket, boolean>()

/** Headers of those that pass on the requests of others. */
const relayed = ["forwarded", "x-forwarded-for", "x-real-ip", "via", "cf-connecting-ip"]

/** Asks once for a connection. */
export const isOwnUser = Effect.fnUntraced(function*(
  fs: FileSystem.FileSystem,
  request: Pick<HttpServerRequest.HttpServerRequest, "headers" | "source">
) {
  // A proxy of the same user speaks for others.
  if (relayed.some((name) => request.headers[name] !== undefined)) return false
  const socket = socketOf(request)
  const from = (socket?.remoteAddress ?? "").replace(/^::ffff:/, "")
  if (socket?.remotePort === undefined || socket.localPort === undefined || !Access.isLoopback(from)) return false
  const before = known.get(socket)
  if (before !== undefined) return before
  const read = (file: string) => Effect.orElseSucceed(fs.readFileString(file), () => "")
  const { localPort, remotePort } = socket
  const table = `${yield* read("/proc/net/tcp")}\n${yield* read("/proc/net/tcp6")}`
  // The other end of it: what is remote here is local there.
  const user = userOf(table, remotePort, localPort)
  const own = user !== undefined && user === process.getuid?.()
  known.set(socket, own)
  return own
})
