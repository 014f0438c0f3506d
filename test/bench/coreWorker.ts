/**
 * Measures one subject in a process of its own, so that subjects share neither heap nor compiled code. The subject is filled once. Then the
 * parent asks for one measurement at a time. Arguments: the table of subjects (hit, sweep or evict), the subject, the number of sessions.
 */
import { Effect } from "effect"
import type { Operation, Subject } from "./coreOperations.ts"
import { keyOf } from "./coreOperations.ts"
import { evictors, open, subjects, sweepers } from "./coreSubjects.ts"

/** A measurement. Its answer is nanoseconds per operation, unless noted. */
export type Request =
  | { readonly measure: "hits"; readonly operation: string; readonly millis: number }
  /** 100 fibers at once, on one key or on a key each. */
  | { readonly measure: "fibers"; readonly keys: 1 | 100; readonly millis: number }
  | { readonly measure: "launch"; readonly count: number }
  /** The longest time for which the event loop was blocked, and the CPU of the whole, in milliseconds. */
  | { readonly measure: "stall"; readonly operation: string; readonly count: number }
  /** Bytes of heap per session, measured when the subject was filled. */
  | { readonly measure: "memory" }

export interface Answer {
  readonly value: number
  readonly cpuMillis?: number
  readonly stallMillis?: number
}

const [table = "", name = "", sessions = "0"] = process.argv.slice(2)
const size = Number(sessions)
const keys = Array.from({ length: size }, (_, i) => keyOf(i))

const heap = (): number => {
  globalThis.gc?.()
  globalThis.gc?.()
  return process.memoryUsage().heapUsed
}

/** Runs an operation `count` times, as users run its kind: in one fiber, one async function or one loop. */
const repeat = async (operation: Operation, count: number, key: (i: number) => number): Promise<void> => {
  switch (operation.kind) {
    case "effect": {
      let i = 0
      return Effect.runPromise(Effect.whileLoop({
        while: () => i < count,
        body: () => operation.run(key(i)),
        step: () => i++
      }))
    }
    case "promise":
      for (let i = 0; i < count; i++) await operation.run(key(i))
      return
    case "call":
      for (let i = 0; i < count; i++) operation.run(key(i))
      return
  }
}

/** Scatters keys, so that no cache of the processor predicts the next one. */
const scattered = (i: number): number => Math.imul(i, 2_654_435_769) >>> 0
const anyKey = (i: number): number => scattered(i) % size

const nanosEach = async (count: number, run: () => Promise<unknown>): Promise<number> => {
  const started = performance.now()
  await run()
  return (performance.now() - started) * 1e6 / count
}

/** Repeats slices of operations for `millis`, and returns nanoseconds per operation. */
const forMillis = async (millis: number, slice: number, run: () => Promise<unknown>): Promise<number> => {
  const started = performance.now()
  let count = 0
  while (performance.now() - started < millis) {
    await run()
    count += slice
  }
  return (performance.now() - started) * 1e6 / count
}

const operationOf = (subject: Subject, name: string): Operation => {
  const operation = subject.operations[name]
  if (operation === undefined) throw new Error(`no operation ${name}`)
  return operation
}

let offset = 0
const hits = (operation: Operation, millis: number): Promise<number> =>
  forMillis(millis, 1000, () => {
    const from = offset
    offset += 1000
    return repeat(operation, 1000, (i) => anyKey(from + i))
  })

const fibers = (operation: Operation, distinct: number, millis: number): Promise<number> => {
  const round = Effect.forEach(
    Array.from({ length: 100 }, (_, i) => distinct === 1 ? 0 : i),
    (key) => operation.kind === "effect" ? operation.run(key) : Effect.void,
    { concurrency: "unbounded", discard: true }
  )
  return forMillis(millis, 1000, () => Effect.runPromise(Effect.repeat(round, { times: 9 })))
}

let fresh = size
const launch = async (subject: Subject, count: number): Promise<number> => {
  const from = fresh
  fresh += count
  const nanos = await nanosEach(count, () => repeat(operationOf(subject, "launch"), count, (i) => from + i))
  const { forget } = subject
  if (forget !== undefined) {
    await Effect.runPromise(
      Effect.forEach(Array.from({ length: count }, (_, i) => from + i), forget, { discard: true })
    )
  }
  return nanos
}

/** Runs operations with a turn of the event loop between them, as between requests, and measures the longest pause. */
const stall = async (operation: Operation, count: number): Promise<Answer> => {
  let last = performance.now()
  let longest = 0
  let over = false
  const turn = (): void => {
    const now = performance.now()
    longest = Math.max(longest, now - last)
    last = now
    if (!over) setImmediate(turn)
  }
  setImmediate(turn)
  const cpu = process.cpuUsage()
  const started = performance.now()
  for (let i = 0; i < count; i++) {
    const key = size + fresh++
    await repeat(operation, 1, () => key)
    await new Promise((resolve) => setImmediate(resolve))
  }
  const value = (performance.now() - started) * 1e6 / count
  over = true
  const { system, user } = process.cpuUsage(cpu)
  return { value, cpuMillis: (system + user) / 1000, stallMillis: longest }
}

const makeSubject = table === "sweep" ? sweepers[name] : table === "evict" ? evictors[name]?.(size) : subjects[name]
if (makeSubject === undefined) throw new Error(`no subject ${name}`)

const empty = heap()
const subject = await Effect.runPromise(open(makeSubject, keys))
await repeat(subject.fill, size, (i) => i)
// Lets the subject finish its own work, such as starting timers, before the measurement.
await new Promise((resolve) => setTimeout(resolve, 100))
const memory = (heap() - empty) / size

const answer = async (request: Request): Promise<Answer> => {
  switch (request.measure) {
    case "hits":
      return { value: await hits(operationOf(subject, request.operation), request.millis) }
    case "fibers":
      return { value: await fibers(operationOf(subject, "overlapping"), request.keys, request.millis) }
    case "launch":
      return { value: await launch(subject, request.count) }
    case "stall":
      return stall(operationOf(subject, request.operation), request.count)
    case "memory":
      return { value: memory }
  }
}

process.on("message", (request: Request) => void answer(request).then((value) => process.send?.(value)))
process.on("disconnect", () => process.exit(0))
process.send?.("filled")
