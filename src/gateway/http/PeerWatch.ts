/**
 * Notices peers that have vanished without a trace (a pulled cable, a sleeping laptop): the kernel goes on sending to them
 * for a quarter of an hour, and while it does, TCP keep-alive is silent. Linux tells in `/proc/net/tcp` how often it has
 * sent the same again without an answer; elsewhere nothing is noticed here.
 */
import type { FileSystem } from "effect"
import { Effect } from "effect"

/** The pause between retransmissions doubles from 0.2 seconds (more on slow lines): the sixth comes after 13. */
const hopeless = 6

/**
 * Retransmissions without any answer, by local and remote port. Of pairs that stand more than once, which differ in their
 * addresses, the fewest.
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

/** Reads the kernel's tables once, and tells of connections by their ports whether it sends to their peers in vain. */
export const look = Effect.fnUntraced(function*(fs: FileSystem.FileSystem) {
  const read = (file: string) => Effect.orElseSucceed(fs.readFileString(file), () => "")
  const counts = retransmissions(`${yield* read("/proc/net/tcp")}\n${yield* read("/proc/net/tcp6")}`)
  return (localPort: number, remotePort: number) => (counts.get(`${localPort},${remotePort}`) ?? 0) >= hopeless
})
