/**
 * Detects peers that vanished without closing the connection (a pulled cable, a sleeping laptop). The kernel
 * retransmits to such a peer for a quarter of an hour, and TCP keep-alive is silent during that time. Linux counts
 * unanswered retransmissions in `/proc/net/tcp`. On other systems nothing is detected.
 */
import type { FileSystem } from "effect"
import { Effect } from "effect"

/**
 * Unanswered retransmissions after which a peer counts as vanished. The pause doubles from 0.2 seconds (more on slow
 * lines), so the sixth comes after 13 seconds.
 */
const hopeless = 6

/**
 * Unanswered retransmissions by local and remote port. Connections on different addresses may have the same ports. Then the
 * lowest count is kept, so no connection is cut for another one.
 */
export const retransmissions = (table: string): ReadonlyMap<string, number> => {
  const counts = new Map<string, number>()
  for (const line of table.split("\n")) {
    const [, local, remote, , , , count] = line.trim().split(/\s+/)
    const ports = [local, remote].map((address) => Number.parseInt(address?.split(":")[1] ?? "", 16)).join()
    const value = Number.parseInt(count ?? "", 16)
    if (!Number.isNaN(value)) counts.set(ports, Math.min(value, counts.get(ports) ?? value))
  }
  return counts
}

/**
 * Reads the kernel's tables once. Returns a function that tells, by the ports of a connection, whether its peer has
 * vanished.
 */
export const look = Effect.fnUntraced(function*(fs: FileSystem.FileSystem) {
  const read = (file: string) => Effect.orElseSucceed(fs.readFileString(file), () => "")
  const counts = retransmissions(`${yield* read("/proc/net/tcp")}\n${yield* read("/proc/net/tcp6")}`)
  return (localPort: number, remotePort: number) => (counts.get(`${localPort},${remotePort}`) ?? 0) >= hopeless
})
