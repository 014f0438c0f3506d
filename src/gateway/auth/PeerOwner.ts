/**
 * Detects requests from processes of the gateway's own user on this machine. Linux lists the user of each socket in
 * `/proc/net/tcp`. On other systems no request counts as the own user's.
 */
import { Effect, Predicate } from "effect"
import type { HttpServerRequest } from "effect/http"
import { readFile } from "node:fs/promises"
import { Socket } from "node:net"
import { setTimeout } from "node:timers/promises"
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

const readTable = (): Promise<string> =>
  Promise.all(["/proc/net/tcp", "/proc/net/tcp6"].map((path) => readFile(path, "utf8").catch(() => "")))
    .then((tables) => tables.join("\n"))

/** In milliseconds. The table is read once in this time at most, because a read with thousands of connections takes milliseconds of CPU. */
const interval = 100

/** The next read, which has not begun. All callers that ask before it begins share it. The whole process has one. */
let next: Promise<Users> | undefined
let lastReadAt = -interval

/** A read of the table that begins after the call, so it has every connection that is open at the call. */
export const readUsers = (read = readTable): Promise<Users> =>
  next ??= setTimeout(Math.max(0, lastReadAt + interval - performance.now())).then(() => {
    next = undefined
    lastReadAt = performance.now()
    return read()
  }).then(usersOf)

/** The results by socket. The whole process shares them, because the owner of a socket never changes. */
const known = new WeakMap<Socket, boolean>()

/** Headers that proxies add. */
export const relayed = ["forwarded", "x-forwarded-for", "x-real-ip", "via", "cf-connecting-ip"]

/** True if a request comes from a process of the gateway's own user. Reads the tables once for each connection. */
export const isOwnUser = (
  request: Pick<HttpServerRequest.HttpServerRequest, "headers" | "source">
): Effect.Effect<boolean> => {
  // A proxy of the same user may forward requests of other users.
  if (relayed.some((name) => request.headers[name] !== undefined)) return Effect.succeed(false)
  const socket = socketOf(request)
  const from = (socket?.remoteAddress ?? "").replace(/^::ffff:/, "")
  if (socket === undefined || !Hosts.isLoopback(from)) return Effect.succeed(false)
  const before = known.get(socket)
  if (before !== undefined) return Effect.succeed(before)
  return Effect.map(Effect.promise(() => readUsers()), (users) => {
    // The client's socket: its local port is the remote port here.
    const ports = `${socket.remotePort}:${socket.localPort}`
    const own = users.has(ports) && users.get(ports) === process.getuid?.()
    known.set(socket, own)
    return own
  })
}
