/** Reads the memory and CPU time of processes from `/proc`. Finds nothing on a system without `/proc`. */
import { Effect, FileSystem, Option } from "effect"

export interface Usage {
  readonly memoryBytes: number
  readonly cpuSeconds: number
}

/** Linux counts memory in pages and time in ticks. Assumes the usual sizes. */
const pageBytes = 4096
const ticksPerSecond = 100

/** The usage of each of these process groups, as the sum over all processes in the group. */
export const usage = Effect.fnUntraced(function*(groups: ReadonlySet<number>) {
  const used = new Map<number, Usage>()
  if (groups.size === 0) return used
  const fs = yield* FileSystem.FileSystem
  const names = yield* Effect.orElseSucceed(fs.readDirectory("/proc"), () => [])
  for (const name of names) {
    if (!/^\d+$/.test(name)) continue
    const stat = yield* Effect.option(fs.readFileString(`/proc/${name}/stat`))
    if (Option.isNone(stat)) continue
    // The program's name, in parentheses, may hold blanks and parentheses, so the fields are counted from its end.
    const fields = stat.value.slice(stat.value.lastIndexOf(")") + 2).split(" ").map(Number)
    const [group = 0, userTicks = 0, systemTicks = 0, pages = 0] = [fields[2], fields[11], fields[12], fields[21]]
    if (!groups.has(group)) continue
    const sum = used.get(group) ?? { memoryBytes: 0, cpuSeconds: 0 }
    used.set(group, {
      memoryBytes: sum.memoryBytes + pages * pageBytes,
      cpuSeconds: sum.cpuSeconds + (userTicks + systemTicks) / ticksPerSecond
    })
  }
  return used
})
