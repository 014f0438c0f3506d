/** The cases of the library's benchmark. Each is one measurement of `SessionPool` and of the subjects that can do the same. */
import type { Answer, Request } from "./coreWorker.ts"

export interface Case {
  readonly name: string
  readonly sessions: number
  /** The table of subjects: see `coreWorker.ts`. */
  readonly kind: "hit" | "sweep" | "evict"
  readonly subjects: ReadonlyArray<string>
  readonly request: Request
  readonly unit: "µs" | "bytes" | "ms"
  readonly figure: (answer: Answer) => number
  /** Uses its sessions up, so each round needs a fresh process. */
  readonly once?: boolean
}

const micros = ({ value }: Answer): number => value / 1000

const hit = (
  name: string,
  operation: string,
  sizes: ReadonlyArray<number>,
  subjects: ReadonlyArray<string>
): ReadonlyArray<Case> =>
  sizes.map((sessions) => ({
    name,
    sessions,
    kind: "hit",
    subjects: ["SessionPool", ...subjects],
    request: { measure: "hits", operation, millis: 200 },
    unit: "µs",
    figure: micros
  }))

const sizes = [100, 1_000, 100_000, 1_000_000]
const small = [100, 1_000, 100_000]

const fibers = (name: string, keys: 1 | 100): Case => ({
  name,
  sessions: 1_000,
  kind: "hit",
  subjects: ["SessionPool", "RcMap"],
  request: { measure: "fibers", keys, millis: 200 },
  unit: "µs",
  figure: micros
})

export const cases: ReadonlyArray<Case> = [
  ...hit("touch", "touch", sizes, ["RcMap", "ScopedCache", "lru-cache", "HashMap get+set", "bare shape"]),
  ...hit("use", "use", sizes, ["RcMap", "ScopedCache", "HashMap get+set", "bare shape"]),
  ...hit("use, more peers", "use", small, ["LayerMap", "Pool per key", "generic-pool per key"]),
  ...hit("get in a scope", "get", sizes, ["RcMap", "bare shape"]),
  ...hit("a fresh structured key", "structured", small, ["RcMap, Data.Class key"]),
  ...hit("touch of an absent key", "absent", small, ["RcMap", "lru-cache"]),
  ...hit("use, bounded pool", "use", sizes, ["SessionPool, bounded"]),
  ...hit("use, leak detection", "use", [1_000], ["SessionPool, leak detection on"]),
  fibers("100 fibers, one key", 1),
  fibers("100 fibers, 100 keys", 100),
  {
    name: "launch",
    sessions: 10_000,
    kind: "hit",
    subjects: ["SessionPool", "RcMap", "ScopedCache", "LayerMap", "generic-pool per key", "lru-cache", "bare shape"],
    request: { measure: "launch", count: 10_000 },
    unit: "µs",
    figure: micros
  },
  {
    name: "memory of an idle session",
    sessions: 100_000,
    kind: "hit",
    subjects: ["SessionPool", "RcMap", "ScopedCache", "LayerMap", "generic-pool per key", "lru-cache", "bare shape"],
    request: { measure: "memory" },
    unit: "bytes",
    figure: ({ value }) => value
  },
  ...(["longest stall", "CPU"] as const).map((what): Case => ({
    name: `sweep, 1 % expired: ${what}`,
    sessions: 1_000_000,
    kind: "sweep",
    subjects: ["SessionPool", "lru-cache", "bare shape"],
    request: { measure: "stall", operation: "sweep", count: 1 },
    unit: "ms",
    figure: ({ cpuMillis = NaN, stallMillis = NaN }) => what === "CPU" ? cpuMillis : stallMillis,
    once: true
  })),
  ...([4_000, 1_000_000] as const).flatMap((sessions) =>
    (["a launch", "longest stall"] as const).map((what): Case => ({
      name: `eviction at capacity: ${what}`,
      sessions,
      kind: "evict",
      subjects: ["SessionPool", "lru-cache", "bare shape"],
      request: { measure: "stall", operation: "launch", count: 5_000 },
      unit: what === "a launch" ? "µs" : "ms",
      figure: ({ stallMillis = NaN, value }) => what === "a launch" ? value / 1000 : stallMillis
    }))
  )
]
