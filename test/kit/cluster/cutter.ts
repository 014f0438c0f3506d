/** A piece of cable that can be cut: a TCP forwarder before one replica, for the connections of the others to it. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import type { Socket } from "node:net"
import { connect, createServer } from "node:net"

export interface Cutter {
  /** All that were ever made through it. */
  readonly total: () => number
  /** Resets the connections of some processes, and each that they make, until it is mended; without any, everybody's. */
  readonly cut: (pids?: ReadonlyArray<number>) => void
  readonly mend: () => void
  readonly stop: () => Promise<void>
}

interface Connection {
  readonly near: Socket
  readonly far: Socket
  readonly owner: number
}

/** Starts one that listens on a port of this machine and forwards to another. */
export const start = async (port: number, target: number): Promise<Cutter> => {
  const connections = new Set<Connection>()
  let total = 0
  let isCut = (_pid: number): boolean => false
  const server = createServer({ noDelay: true }, (near) => {
    near.on("error", () => undefined)
    const owner = ownerOf(near.remotePort ?? 0, port)
    if (isCut(owner)) return void near.resetAndDestroy()
    total++
    const far = connect(target, "127.0.0.1").setNoDelay(true)
    const connection = { near, far, owner }
    connections.add(connection)
    for (const [one, other] of [[near, far], [far, near]] as const) {
      one.pipe(other)
      one.on("error", () => other.resetAndDestroy()).on("close", () => {
        connections.delete(connection)
        other.destroy()
      })
    }
  }).listen(port, "127.0.0.1")
  await new Promise((resolve, reject) => server.once("listening", resolve).once("error", reject))
  const reset = () => {
    for (const { far, near, owner } of connections) {
      if (!isCut(owner)) continue
      near.resetAndDestroy()
      far.resetAndDestroy()
    }
  }
  return {
    total: () => total,
    cut: (pids) => {
      isCut = pids === undefined ? () => true : (pid) => pids.includes(pid)
      reset()
    },
    mend: () => {
      isCut = () => false
    },
    stop: async () => {
      isCut = () => true
      reset()
      await new Promise((resolve) => server.close(resolve))
    }
  }
}

/**
 * The process at the other end of a connection on this machine; 0 if it is gone. All replicas have the same address here, so
 * nothing else tells them apart.
 */
const ownerOf = (from: number, to: number): number => {
  const hex = (port: number) => port.toString(16).toUpperCase().padStart(4, "0")
  const row = ["tcp", "tcp6"].flatMap((table) => readFileSync(`/proc/net/${table}`, "utf8").split("\n"))
    .map((line) => line.trim().split(/\s+/))
    .find(([, local = "", remote = ""]) => local.endsWith(`:${hex(from)}`) && remote.endsWith(`:${hex(to)}`))
  const inode = row?.[9]
  if (inode === undefined || inode === "0") return 0
  const holds = (pid: string): boolean => {
    try {
      return readdirSync(`/proc/${pid}/fd`).some((fd) => linkOf(`/proc/${pid}/fd/${fd}`) === `socket:[${inode}]`)
    } catch {
      return false
    }
  }
  return Number(readdirSync("/proc").find((name) => /^\d+$/.test(name) && holds(name)) ?? 0)
}

const linkOf = (path: string): string => {
  try {
    return readlinkSync(path)
  } catch {
    return ""
  }
}
