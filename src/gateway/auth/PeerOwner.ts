/**
 * Detects requests from processes of the gateway's own user on this machine. Linux lists the user of each socket in
 * `/proc/net/tcp`. On other systems no request counts as the own user's.
 */
import type { FileSystem } from "effect"
import { Clock, Deferred, Duration, Effect, Predicate } from "effect"
import type { HttpServerRequest } from "effect/http"
import { Socket } from "node:net"
import * as Hosts from "./Hosts.ts"

/** The `node:net` socket that a request arrived on, if there is one. */
export const socketOf = ({ source }: Pick<HttpServerRequest.HttpServerRequest, "source">): Socket | undefined => {
  const socket = Predicate.hasProperty(source, "socket") ? source.socket : undefined
  return socket instanceof Socket ? socket : undefined
}

/** The user ids of sockets on loopback addresses, by `localPort:remotePort`. Undefined if sockets of several users have these ports. */
export type Users = ReadonlyMap<string, number | undefined>

/** A row of the table: local address and port, remote port, user id. */
const row = /^ *\d+: ([\dA-F]+):([\dA-F]{4}) [\dA-F]+:([\dA-F]{4}) (?:\S+ +){4}(\d+)/gm

/** Reads the kernel's table. */
export const usersOf = (table: string): Users => {
  const users = new Map<string, number | undefined>()
  for (const [, address = "", local = "", remote = "", user = ""] of table.matchAll(row)) {
    if (!isLoopback(address)) continue
    const ports = `${Number.parseInt(local, 16)}:${Number.parseInt(remote, 16)}`
    // Sockets on different addresses may have the same ports.
    users.set(ports, !users.has(ports) || users.get(ports) === Number(user) ? Number(user) : undefined)
  }
  return users
}

/**
 * The table writes an address in words of four bytes, last byte first: 127.0.0.1 is `0100007F`, ::1 `0000…01000000`.
 */
const isLoopback = (address: string): boolean => /^((0{16}FFFF0000)?[\dA-F]{6}7F|0{24}01000000)$/.test(address)

/** The table is read at most once in this time, because a read with thousands of connections takes milliseconds of CPU. */
const interval = Duration.millis(100)

/** The next read, which has not begun. All callers that ask before it begins share it. The whole process has one. */
let next: Deferred.Deferred<Users> | undefined
let lastReadAt = Number.NEGATIVE_INFINITY

/** A read of the table that begins after the call, so it has every connection that is open at the call. */
export const readUsers = (fs: FileSystem.FileSystem): Effect.Effect<Users> =>
  Effect.uninterruptibleMask((restore) => {
    if (next !== undefined) return restore(Deferred.await(next))
    const users = next = Deferred.makeUnsafe<Users>()
    const file = (path: string) => Effect.orElseSucceed(fs.readFileString(path), () => "")
    const read = Effect.gen(function*() {
      const left = lastReadAt + Duration.toMillis(interval) - (yield* Clock.currentTimeMillis)
      // Not longer than the interval, because the clock may step back.
      yield* Effect.sleep(Math.min(Math.max(0, left), Duration.toMillis(interval)))
      next = undefined
      lastReadAt = yield* Clock.currentTimeMillis
      return usersOf(`${yield* file("/proc/net/tcp")}\n${yield* file("/proc/net/tcp6")}`)
    })
    // Several gateways of one process may have clocks of their own, but share this read. So it waits by the system's clock.
    const timed = Effect.provideService(read, Clock.Clock, Clock.Clock.defaultValue())
    // In a fiber of its own, because the other callers still wait when this one is interrupted.
    return Effect.andThen(Effect.forkDetach(Deferred.into(timed, users)), restore(Deferred.await(users)))
  })

/** The results by socket. The whole process shares them, because the owner of a socket never changes. */
const known = new WeakMap<Socket, boolean>()

/** Headers that proxies add. */
export const relayed = ["forwarded", "x-forwarded-for", "x-real-ip", "via", "cf-connecting-ip"]

/** True if a request comes from a process of the gateway's own user. Reads the tables once for each connection. */
export const isOwnUser = Effect.fnUntraced(function*(
  fs: FileSystem.FileSystem,
  request: Pick<HttpServerRequest.HttpServerRequest, "headers" | "source">
) {
  // A proxy of the same user may forward requests of other users.
  if (relayed.some((name) => request.headers[name] !== undefined)) return false
  const socket = socketOf(request)
  const from = (socket?.remoteAddress ?? "").replace(/^::ffff:/, "")
  if (socket?.remotePort === undefined || socket.localPort === undefined || !Hosts.isLoopback(from)) return false
  const before = known.get(socket)
  if (before !== undefined) return before
  // The client's socket: its local port is the remote port here.
  const user = (yield* readUsers(fs)).get(`${socket.remotePort}:${socket.localPort}`)
  const own = user !== undefined && user === process.getuid?.()
  known.set(socket, own)
  return own
})
