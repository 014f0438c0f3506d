/**
 * Every option of a pool: what it does, what it is by default, and what it refuses. Long, because each option has its section here.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  Cause,
  Deferred,
  Duration,
  Effect,
  Exit,
  Fiber,
  Formatter,
  Logger,
  Metric,
  Option,
  Random,
  Scope,
  Stream
} from "effect"
import { TestClock } from "effect/testing"
import { readFileSync } from "node:fs"
import { SessionPool } from "../src/index.ts"
import * as Options from "../src/internal/options.ts"
import * as Backend from "./kit/pool/backend.ts"
import { readme } from "./kit/readme.ts"

type Pool = SessionPool.SessionPool<string, Backend.Connection>

const keysOf = (connections: ReadonlyArray<Backend.Connection>) => connections.map(({ key }) => key)

/** Leases and releases. */
const visit = (pool: Pool, key: string) => Effect.scoped(SessionPool.get(pool, key))

/** Leases until `release` runs. */
const lease = Effect.fnUntraced(function*(pool: Pool, key: string) {
  const scope = yield* Scope.make()
  yield* Scope.provide(SessionPool.get(pool, key), scope)
  return { release: Scope.close(scope, Exit.void) }
})

/** Asks for a session in a fiber of its own. */
const ask = (pool: Pool, key: string) => Effect.forkChild(visit(pool, key), { startImmediately: true })

const invalidOptions = <A, E>(exit: Exit.Exit<A, E>): SessionPool.InvalidOptions => {
  assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause), "a defect")
  const defect = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
  assert.instanceOf(defect, SessionPool.InvalidOptions)
  return defect
}

/** One test for each value that the option refuses: what `make` dies of names the option and the value. */
const refuses = (option: string, values: ReadonlyArray<unknown>, others: object = {}) => {
  for (const value of values) {
    it.effect(`${option} refuses ${JSON.stringify(value) ?? String(value)} (${String(value)})`, () =>
      Effect.gen(function*() {
        const options = { lookup: Backend.make().open, ...others, [option]: value }
        const error = invalidOptions(yield* Effect.exit(SessionPool.make(options)))
        assert.deepStrictEqual([error.option, error.value], [option, Formatter.format(value)])
        assert.include(error.message, option)
        assert.isNotEmpty(error.allowed)
        assert.include(error.message, error.allowed)
      }))
  }
}

const noDuration = [
  -1,
  Number.NaN,
  { seconds: Number.NaN },
  [Number.NaN, 0],
  "-1 second",
  "soon",
  // Not zero, which the units that are missing would add up to.
  {},
  { minute: 5 },
  { minutes: 5, second: 1 },
  { minutes: undefined },
  new Date(5)
]
const noPositiveDuration = [0, ...noDuration]

/** Everything that `events` says from now on. */
const listen = Effect.fnUntraced(function*(pool: Pool) {
  const seen: Array<SessionPool.Event<string, SessionPool.AcquireError>> = []
  yield* Effect.forkScoped(
    Stream.runForEach(SessionPool.events(pool), (event) => Effect.sync(() => seen.push(event))),
    { startImmediately: true }
  )
  yield* TestClock.adjust(0)
  return seen
})

describe("the README's table of options", () => {
  const [, table = ""] = /^### Options\n([\s\S]*?)\n### /m.exec(readme) ?? []
  const rows = [...table.matchAll(/^\| (`.*?) \| (.*?) \|/gm)].flatMap(([, names = "", shown = ""]) => {
    const split = names.split(", ").map((name) => name.replaceAll("`", ""))
    const defaults = shown.split(", ")
    return split.map((name, i) => [name, defaults[i] ?? defaults.at(-1) ?? ""] as const)
  })
  const words: Record<string, unknown> = {
    infinity: Infinity,
    unbounded: Infinity,
    off: Infinity,
    zero: 0,
    none: undefined
  }
  const meant = (shown: string) => {
    if (shown in words) return words[shown]
    const duration = Duration.fromInput(shown.replace(/ ms$| milliseconds$/, " millis") as Duration.Input)
    return Option.isSome(duration)
      ? Duration.toMillis(duration.value)
      : /^\d+$/.test(shown)
      ? Number(shown)
      : shown.replaceAll("`", "")
  }

  it("has every option, with the default that it has", () => {
    const check = {
      lookup: Effect.succeed<string>,
      validate: () => Effect.succeed(true),
      groupBy: (key: string) => key
    }
    const { groupBy, idleTimeToLive, isError, validate, ...others } = Options.resolveUnsafe(check)
    const known = new Map(Object.entries<unknown>({ ...others, idleTimeToLive: idleTimeToLive("a") }))
    assert.isTrue(isError(Cause.fail("any"), "a"))
    assert.deepStrictEqual([validate, groupBy], [check.validate, check.groupBy])
    const told = new Map(rows)
    assert.sameMembers([...told.keys()], ["lookup", "isError", "validate", "groupBy", ...known.keys()])
    assert.strictEqual(told.size, rows.length)
    for (const [name, value] of known) {
      // No limit of groups is one that nothing reaches.
      const shown = name === "groupCapacity" ? "unbounded" : told.get(name) ?? ""
      assert.deepStrictEqual([name, meant(shown)], [name, value])
    }
    assert.deepStrictEqual(["lookup", "isError", "validate", "groupBy"].map((name) => told.get(name)), [
      "required",
      "every failure and defect",
      "none",
      "none"
    ])
  })

  it("tells the same defaults as the docstrings", () => {
    const source = readFileSync(new URL("../src/internal/options.ts", import.meta.url), "utf8")
    const docs = [...source.matchAll(/Default: ([^;.]*)[^/]*\*\/\n {2}readonly (\w+)\?/g)]
    const told = new Map(rows)
    const required = ["lookup", "groupBy", "validate", "closed"]
    assert.sameMembers(docs.map(([, , name]) => name), [...told.keys()].filter((name) => !required.includes(name)))
    for (const [, shown = "", name = ""] of docs) {
      if (name === "isError") continue
      const text = shown.replaceAll("`", "")
      assert.deepStrictEqual([name, meant(text)], [name, meant(told.get(name) ?? "")])
    }
  })
})

describe("lookup", () => {
  it.effect("opens the connection, given the key", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open })
      yield* visit(pool, "a")
      assert.deepStrictEqual(keysOf(backend.opened), ["a"])
    }))

  refuses("lookup", [undefined, "open", null])
})

describe("idleTimeToLive", () => {
  it.effect("closes a session that has been idle for longer, no later than one interval after", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        idleTimeToLive: "10 minutes",
        cleanupInterval: "1 minute"
      })
      yield* visit(pool, "a")
      yield* TestClock.adjust("10 minutes")
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.IdleTimeout, 1)
    }))

  it.effect("starts anew at each touch and at each release", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        idleTimeToLive: "10 minutes",
        cleanupInterval: "1 minute"
      })
      const held = yield* lease(pool, "released")
      yield* visit(pool, "touched")
      yield* visit(pool, "left")
      yield* TestClock.adjust("9 minutes")
      yield* held.release
      yield* SessionPool.touch(pool, "touched")
      yield* TestClock.adjust("10 minutes")
      assert.deepStrictEqual(keysOf(backend.closed), ["left"])
      yield* TestClock.adjust("1 minute")
      assert.sameMembers(keysOf(backend.closed), ["left", "released", "touched"])
    }))

  it.effect("as a function gives each key a time of its own", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        idleTimeToLive: (key: string) => key === "short" ? "1 minute" : key === "none" ? 0 : "1 hour",
        cleanupInterval: "1 minute"
      })
      yield* visit(pool, "long")
      yield* visit(pool, "short")
      yield* visit(pool, "none")
      assert.deepStrictEqual(keysOf(backend.closed), ["none"])
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(keysOf(backend.closed), ["none", "short"])
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(keysOf(backend.closed), ["none", "short", "long"])
    }))

  it.effect("zero closes a session with its last release, without a sweep", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, idleTimeToLive: Duration.zero })
      const first = yield* lease(pool, "a")
      const second = yield* lease(pool, "a")
      yield* first.release
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* second.release
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.IdleTimeout, 1)
    }))

  it.effect("infinity never closes an idle session", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        idleTimeToLive: "Infinity",
        cleanupInterval: "1 day"
      })
      yield* visit(pool, "a")
      yield* TestClock.adjust("365 days")
      assert.strictEqual(yield* SessionPool.sweep(pool), 0)
      assert.deepStrictEqual(keysOf(backend.closed), [])
    }))

  it.effect("is 30 minutes by default", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, cleanupInterval: "Infinity" })
      yield* visit(pool, "a")
      yield* TestClock.adjust("30 minutes")
      assert.strictEqual(yield* SessionPool.sweep(pool), 0)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(yield* SessionPool.sweep(pool), 1)
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
    }))

  it.effect("as a function that says nonsense is a defect of the get that asked", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Backend.make().open, idleTimeToLive: () => -5 })
      const error = invalidOptions(yield* Effect.exit(visit(pool, "a")))
      assert.deepStrictEqual([error.option, error.value], ["idleTimeToLive", "-5"])
      assert.strictEqual(yield* SessionPool.size(pool), 0)
    }))

  it.effect("takes an object of units, also one that has them from its prototype, as Temporal.Duration does", () =>
    Effect.gen(function*() {
      class Temporal {
        get minutes() {
          return 1
        }
        get seconds() {
          return 0
        }
        readonly months = 0
      }
      for (const idleTimeToLive of [{ minutes: 1 }, { seconds: 30, milliseconds: 30_000 }, new Temporal()]) {
        const pool = yield* SessionPool.make({
          lookup: Backend.make().open,
          idleTimeToLive,
          cleanupInterval: "1 second"
        })
        yield* visit(pool, "a")
        yield* TestClock.adjust("1 minute")
        assert.strictEqual(yield* SessionPool.size(pool), 1)
        yield* TestClock.adjust("1 second")
        assert.strictEqual(yield* SessionPool.size(pool), 0)
      }
    }))

  it.effect("as a function that gives nothing for a key is refused to who asks for that key", () =>
    Effect.gen(function*() {
      const times: Record<string, Duration.Input> = { known: "1 minute" }
      // What a table's type says of a key that is not in it.
      const pool = yield* SessionPool.make({
        lookup: Backend.make().open,
        idleTimeToLive: (key) => times[key] as Duration.Input
      })
      yield* visit(pool, "known")
      const error = invalidOptions(yield* Effect.exit(visit(pool, "unknown")))
      assert.deepStrictEqual([error.option, error.value], ["idleTimeToLive", "undefined"])
      assert.deepStrictEqual(yield* SessionPool.keys(pool), ["known"])
    }))

  refuses("idleTimeToLive", noDuration)
})

describe("cleanupInterval", () => {
  it.effect("is how often expired sessions are looked for", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        idleTimeToLive: "1 minute",
        cleanupInterval: "10 minutes"
      })
      yield* visit(pool, "a")
      yield* TestClock.adjust(10 * 60_000 - 1)
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
    }))

  it.effect("infinity leaves the sweep to the user", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        idleTimeToLive: "1 minute",
        cleanupInterval: "Infinity"
      })
      yield* visit(pool, "a")
      yield* TestClock.adjust("7 days")
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* SessionPool.sweep(pool)
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
    }))

  it.effect("is 5 minutes by default", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, idleTimeToLive: 1 })
      yield* visit(pool, "a")
      yield* TestClock.adjust(5 * 60_000 - 1)
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
    }))

  refuses("cleanupInterval", noPositiveDuration)
})

/** A `use` that fails. */
const failing = (pool: Pool, key: string, error: unknown = "broken") =>
  Effect.exit(SessionPool.use(pool, key, () => Effect.fail(error)))

const errorsOf = (pool: Pool, key: string) =>
  Effect.map(SessionPool.info(pool, key), Option.map(({ errorCount }) => errorCount))

describe("maxErrorCount", () => {
  it.effect("retires a session at that many errors in a row", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, maxErrorCount: 3 })
      yield* failing(pool, "a")
      yield* SessionPool.recordError(pool, "a")
      assert.deepStrictEqual(yield* errorsOf(pool, "a"), Option.some(2))
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* failing(pool, "a")
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Errors, 1)
    }))

  it.effect("counts anew after a success", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, maxErrorCount: 2 })
      for (let round = 0; round < 5; round++) {
        yield* failing(pool, "a")
        yield* SessionPool.use(pool, "a", () => Effect.void)
      }
      assert.deepStrictEqual(yield* errorsOf(pool, "a"), Option.some(0))
      assert.deepStrictEqual([backend.opened.length, backend.closed.length], [1, 0])
    }))

  it.effect("infinity never retires", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, maxErrorCount: Infinity })
      for (let round = 0; round < 100; round++) yield* failing(pool, "a")
      assert.deepStrictEqual(yield* errorsOf(pool, "a"), Option.some(100))
      assert.deepStrictEqual([backend.opened.length, backend.closed.length], [1, 0])
    }))

  it.effect("is 10 by default", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open })
      for (let round = 0; round < 9; round++) yield* failing(pool, "a")
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* failing(pool, "a")
      assert.deepStrictEqual([backend.opened.length, backend.closed.length], [1, 1])
    }))

  refuses("maxErrorCount", [0, -1, 1.5, Number.NaN, -Infinity])
})

describe("isError", () => {
  it.effect("says by cause and key which failures count", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: Backend.make().open,
        isError: (cause: Cause.Cause<unknown>, key: string) => key !== "trusted" && Cause.squash(cause) === "broken"
      })
      for (const key of ["a", "trusted"]) {
        yield* failing(pool, key, "refused")
        yield* failing(pool, key, "broken")
      }
      assert.deepStrictEqual(yield* errorsOf(pool, "a"), Option.some(1))
      assert.deepStrictEqual(yield* errorsOf(pool, "trusted"), Option.some(0))
    }))

  it.effect("by default counts every failure and defect, but no interruption", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Backend.make().open })
      yield* failing(pool, "a")
      yield* Effect.exit(SessionPool.use(pool, "a", () => Effect.die("defect")))
      yield* Effect.exit(SessionPool.use(pool, "a", (): Effect.Effect<void> => {
        throw new Error("thrown")
      }))
      yield* Effect.exit(SessionPool.use(pool, "a", () => Effect.interrupt))
      assert.deepStrictEqual(yield* errorsOf(pool, "a"), Option.some(3))
    }))

  it.effect("that throws counts the error, and the caller gets its own failure", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: Backend.make().open,
        isError: () => {
          throw new Error("judge is ill")
        }
      })
      assert.deepStrictEqual(yield* failing(pool, "a"), Exit.fail("broken"))
      assert.deepStrictEqual(yield* errorsOf(pool, "a"), Option.some(1))
    }))

  refuses("isError", ["yes", null])
})

describe("maxLifetime", () => {
  it.effect("ends sessions that were launched together within a tenth before it, but not together", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* Random.withSeed(
        SessionPool.make({
          lookup: backend.open,
          idleTimeToLive: "Infinity",
          maxLifetime: "100 minutes",
          cleanupInterval: "1 minute"
        }),
        "jitter"
      )
      for (let session = 0; session < 50; session++) yield* visit(pool, `s${session}`)
      yield* TestClock.adjust("90 minutes")
      assert.strictEqual(backend.closed.length, 0)
      const ends: Array<number> = []
      for (let minute = 0; minute < 11; minute++) {
        yield* TestClock.adjust("1 minute")
        ends.push(backend.closed.length)
      }
      assert.strictEqual(ends.at(-1), 50)
      assert.isAtLeast(new Set(ends).size, 5, "spread over the minutes")
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.MaxLifetime, 50)
    }))

  it.effect("does not close a session in use, but gives it to nobody else", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, maxLifetime: "1 hour" })
      const held = yield* lease(pool, "a")
      yield* TestClock.adjust("2 hours")
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* visit(pool, "a")
      assert.strictEqual(backend.opened.length, 2)
      yield* held.release
      assert.deepStrictEqual(backend.closed.map(({ id }) => id), [1])
    }))

  it.effect("is infinity by default", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        idleTimeToLive: "Infinity",
        cleanupInterval: "1 day"
      })
      yield* visit(pool, "a")
      yield* TestClock.adjust("365 days")
      assert.deepStrictEqual(keysOf(backend.closed), [])
    }))

  refuses("maxLifetime", noPositiveDuration)
})

describe("capacity", () => {
  it.effect("is kept by closing the least recently used idle session", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, capacity: 3 })
      for (const key of ["a", "b", "c"]) {
        yield* visit(pool, key)
        yield* TestClock.adjust("1 second")
      }
      yield* SessionPool.touch(pool, "a")
      const held = yield* lease(pool, "b")
      yield* visit(pool, "d")
      assert.deepStrictEqual(keysOf(backend.closed), ["c"])
      yield* visit(pool, "e")
      assert.deepStrictEqual(keysOf(backend.closed), ["c", "a"])
      yield* visit(pool, "f")
      assert.deepStrictEqual(keysOf(backend.closed), ["c", "a", "d"])
      yield* held.release
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Evicted, 3)
      assert.strictEqual(backend.openCount(), 3)
    }))

  it.effect("makes callers wait while every session is in use, first come first served", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, capacity: 1 })
      const held = yield* lease(pool, "a")
      const fibers = [yield* ask(pool, "b"), yield* ask(pool, "c"), yield* ask(pool, "d")]
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 3)
      assert.deepStrictEqual(keysOf(backend.opened), ["a"])
      yield* held.release
      yield* Fiber.joinAll(fibers)
      assert.deepStrictEqual(keysOf(backend.opened), ["a", "b", "c", "d"])
      assert.deepStrictEqual(keysOf(backend.closed), ["a", "b", "c"])
    }))

  it.effect("counts a retired session until it is closed", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, capacity: 1 })
      const held = yield* lease(pool, "a")
      yield* SessionPool.invalidate(pool, "a")
      const fiber = yield* ask(pool, "b")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(keysOf(backend.opened), ["a"])
      yield* held.release
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(keysOf(backend.opened), ["a", "b"])
    }))

  for (const capacity of [undefined, Infinity]) {
    it.effect(`${capacity ?? "by default"} is unbounded`, () =>
      Effect.gen(function*() {
        const backend = Backend.make()
        const pool = yield* SessionPool.make({ lookup: backend.open, capacity })
        for (let session = 0; session < 2000; session++) yield* SessionPool.get(pool, `s${session}`)
        assert.strictEqual((yield* SessionPool.stats(pool)).active, 2000)
        assert.deepStrictEqual([backend.opened.length, backend.closed.length], [2000, 0])
      }))
  }

  refuses("capacity", [0, -1, 1.5, Number.NaN, -Infinity])
})

/** The part of a key before the slash. */
const groupBy = (key: string) => key.slice(0, key.indexOf("/"))

describe("groupBy and groupCapacity", () => {
  it.effect("limit each group by itself, and evict within the group only", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, groupBy, groupCapacity: 2 })
      yield* visit(pool, "y/1")
      for (const key of ["x/1", "x/2", "x/3"]) {
        yield* TestClock.adjust("1 second")
        yield* visit(pool, key)
      }
      assert.deepStrictEqual(keysOf(backend.closed), ["x/1"])
      assert.sameMembers(yield* SessionPool.keys(pool), ["y/1", "x/2", "x/3"])
    }))

  it.effect("make a caller of a full group wait, and no caller of another group", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, groupBy, groupCapacity: 1 })
      const held = yield* lease(pool, "x/1")
      const fiber = yield* ask(pool, "x/2")
      yield* visit(pool, "y/1")
      assert.deepStrictEqual(keysOf(backend.opened), ["x/1", "y/1"])
      yield* held.release
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(keysOf(backend.opened), ["x/1", "y/1", "x/2"])
      assert.deepStrictEqual(keysOf(backend.closed), ["x/1"])
    }))

  it.effect("say in the refusal that it was the group's limit", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: Backend.make().open,
        capacity: 10,
        groupBy,
        groupCapacity: 1,
        maxWaiting: 0
      })
      yield* SessionPool.get(pool, "x/1")
      const error = yield* Effect.flip(visit(pool, "x/2"))
      assert.instanceOf(error, SessionPool.CapacityExceeded)
      assert.deepStrictEqual([error.key, error.scope, error.limit], ["x/2", "group", 1])
      assert.include(error.message, "groupCapacity")
    }))

  it.effect("take any hashable value for a group", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        groupBy: (key: string) => Option.some(groupBy(key)),
        groupCapacity: 1
      })
      yield* visit(pool, "x/1")
      yield* visit(pool, "x/2")
      assert.deepStrictEqual(keysOf(backend.closed), ["x/1"])
    }))

  it.effect("have no limit by default", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, groupBy })
      for (let session = 0; session < 100; session++) yield* SessionPool.get(pool, `x/${session}`)
      assert.strictEqual(backend.openCount(), 100)
    }))

  it.effect("refuse a groupCapacity without groupBy", () =>
    Effect.gen(function*() {
      const made = SessionPool.make({ lookup: Backend.make().open, groupCapacity: 3 })
      const error = invalidOptions(yield* Effect.exit(made))
      assert.deepStrictEqual([error.option, error.value], ["groupBy", "undefined"])
      assert.include(error.message, "groupCapacity")
    }))

  refuses("groupCapacity", [0, -1, 1.5, Number.NaN], { groupBy })
  refuses("groupBy", ["backend", null])
})

describe("acquireTimeout", () => {
  const full = (options: { readonly acquireTimeout?: Duration.Input | undefined }) =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Backend.make().open, capacity: 1, ...options })
      const held = yield* lease(pool, "a")
      const fiber = yield* ask(pool, "b")
      return { pool, held, fiber }
    })

  it.effect("ends the wait at capacity with what a person needs to act", () =>
    Effect.gen(function*() {
      const { fiber, pool } = yield* full({ acquireTimeout: "3 seconds" })
      yield* TestClock.adjust(2999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = yield* Effect.flip(Fiber.join(fiber))
      assert.instanceOf(error, SessionPool.CapacityExceeded)
      const { key, limit, scope, waited, waiting } = error
      assert.deepStrictEqual({ key, scope, limit, waited, waiting }, {
        key: "b",
        scope: "pool",
        limit: 1,
        waited: 3000,
        waiting: 0
      })
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 0)
    }))

  it.effect("ends the wait of a set as well, and the pool closes the connection that it could not take", () =>
    Effect.gen(function*() {
      const { held, pool } = yield* full({ acquireTimeout: "3 seconds" })
      const closed: Array<string> = []
      const setting = yield* Effect.forkChild(
        SessionPool.set(pool, "c", { key: "c", id: 0 }, Effect.sync(() => closed.push("c"))),
        { startImmediately: true }
      )
      yield* TestClock.adjust("3 seconds")
      const error = yield* Effect.flip(Fiber.join(setting))
      assert.strictEqual(error._tag, "CapacityExceeded")
      yield* held.release
      assert.deepStrictEqual(closed, ["c"])
      assert.notInclude(yield* SessionPool.keys(pool), "c")
    }))

  it.effect("zero waits for nothing", () =>
    Effect.gen(function*() {
      const { fiber } = yield* full({ acquireTimeout: 0 })
      yield* TestClock.adjust(0)
      assert.strictEqual((yield* Effect.flip(Fiber.join(fiber)))._tag, "CapacityExceeded")
    }))

  it.effect("infinity waits as long as it takes", () =>
    Effect.gen(function*() {
      const { fiber, held } = yield* full({ acquireTimeout: "Infinity" })
      yield* TestClock.adjust("1 day")
      assert.isUndefined(fiber.pollUnsafe())
      yield* held.release
      assert.strictEqual((yield* Fiber.join(fiber)).key, "b")
    }))

  it.effect("is 30 seconds by default", () =>
    Effect.gen(function*() {
      const { fiber } = yield* full({})
      yield* TestClock.adjust(29_999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = yield* Effect.flip(Fiber.join(fiber))
      assert.instanceOf(error, SessionPool.CapacityExceeded)
      assert.strictEqual(error.waited, 30_000)
    }))

  refuses("acquireTimeout", noDuration)
})

describe("maxWaiting", () => {
  it.effect("bounds the callers that wait; one more fails at once", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Backend.make().open, capacity: 1, maxWaiting: 2 })
      const held = yield* lease(pool, "a")
      const waiting = [yield* ask(pool, "b"), yield* ask(pool, "b")]
      const [sameKey, otherKey] = [yield* Effect.flip(visit(pool, "b")), yield* Effect.flip(visit(pool, "c"))]
      for (const error of [sameKey, otherKey]) {
        assert.instanceOf(error, SessionPool.CapacityExceeded)
        assert.deepStrictEqual([error.waited, error.waiting], [0, 2])
      }
      yield* held.release
      assert.deepStrictEqual(keysOf(yield* Fiber.joinAll(waiting)), ["b", "b"])
    }))

  it.effect("zero lets nobody wait, but a caller that an eviction makes room for still gets in", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, capacity: 1, maxWaiting: 0 })
      const held = yield* lease(pool, "a")
      assert.strictEqual((yield* Effect.flip(visit(pool, "b")))._tag, "CapacityExceeded")
      yield* held.release
      yield* visit(pool, "b")
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
    }))

  it.effect("is unbounded by default", () =>
    Effect.gen(function*() {
      const { open } = Backend.make()
      const lookup = (key: string) => Effect.andThen(Effect.yieldNow, open(key))
      const pool = yield* SessionPool.make({ lookup, capacity: 1 })
      const held = yield* lease(pool, "a")
      const fibers = yield* Effect.forEach(Array.from({ length: 500 }, (_, n) => `s${n}`), (key) => ask(pool, key))
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 500)
      yield* held.release
      assert.strictEqual((yield* Fiber.joinAll(fibers)).length, 500)
    }))

  refuses("maxWaiting", [-1, 0.5, Number.NaN, -Infinity])
})

describe("lookupTimeout", () => {
  const slow = (options: { readonly lookupTimeout?: Duration.Input | undefined }) =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.tap(backend.open(key), () => Effect.sleep("1 hour")),
        ...options
      })
      return { backend, pool, fiber: yield* ask(pool, "a") }
    })

  it.effect("ends a launch that takes too long, and closes what it had acquired", () =>
    Effect.gen(function*() {
      const { backend, fiber, pool } = yield* slow({ lookupTimeout: "2 seconds" })
      yield* TestClock.adjust(1999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = yield* Effect.flip(Fiber.join(fiber))
      assert.instanceOf(error, SessionPool.LookupTimeout)
      assert.deepStrictEqual([error.key, error.limit, error.waited], ["a", 2000, 2000])
      backend.assertAllClosedOnce()
      const { launchFailures, launching, retired } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual({ launchFailures, launching, retired }, { launchFailures: 1, launching: 0, retired: 0 })
    }))

  it.effect("closes what a launch acquires after its time, when it cannot be interrupted", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.uninterruptible(Effect.andThen(Effect.sleep("1 minute"), backend.open(key))),
        lookupTimeout: "2 seconds"
      })
      const fiber = yield* ask(pool, "a")
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* Effect.flip(Fiber.join(fiber)))._tag, "LookupTimeout")
      assert.strictEqual(backend.opened.length, 0)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(backend.opened.length, 1)
      backend.assertAllClosedOnce()
    }))

  it.effect("infinity lets a launch take as long as it takes", () =>
    Effect.gen(function*() {
      const { fiber } = yield* slow({ lookupTimeout: "Infinity" })
      yield* TestClock.adjust("1 hour")
      assert.strictEqual((yield* Fiber.join(fiber)).key, "a")
    }))

  it.effect("is 1 minute by default", () =>
    Effect.gen(function*() {
      const { fiber } = yield* slow({})
      yield* TestClock.adjust(59_999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = yield* Effect.flip(Fiber.join(fiber))
      assert.instanceOf(error, SessionPool.LookupTimeout)
      assert.strictEqual(error.limit, 60_000)
    }))

  refuses("lookupTimeout", noPositiveDuration)
})

describe("failureTimeToLive", () => {
  /** A back end that refuses, and counts how often it was asked. */
  const broken = (options: { readonly failureTimeToLive?: Duration.Input | undefined }) =>
    Effect.gen(function*() {
      const tries = { count: 0 }
      const lookup = (key: string) => Effect.suspend(() => Effect.fail(`${key} failed (${++tries.count})`))
      const pool = yield* SessionPool.make<string, never, string, never>({ lookup, ...options })
      const get = Effect.flip(Effect.scoped(SessionPool.get(pool, "a")))
      return { tries, pool, get }
    })

  it.effect("fails callers at once with the same error while it lasts, then launches again", () =>
    Effect.gen(function*() {
      const { get, tries } = yield* broken({ failureTimeToLive: "10 seconds" })
      assert.strictEqual(yield* get, "a failed (1)")
      yield* TestClock.adjust(9999)
      assert.strictEqual(yield* get, "a failed (1)")
      assert.strictEqual(tries.count, 1)
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* get, "a failed (2)")
    }))

  it.effect("is no session: nothing is live, and getOption finds none", () =>
    Effect.gen(function*() {
      const { get, pool } = yield* broken({ failureTimeToLive: "10 seconds" })
      yield* get
      assert.strictEqual(yield* SessionPool.size(pool), 0)
      assert.deepStrictEqual(yield* SessionPool.getOption(pool, "a"), Option.none())
      assert.deepStrictEqual(yield* SessionPool.touch(pool, "a"), Option.none())
    }))

  it.effect("is zero by default: every get launches", () =>
    Effect.gen(function*() {
      const { get } = yield* broken({})
      assert.deepStrictEqual([yield* get, yield* get], ["a failed (1)", "a failed (2)"])
    }))

  refuses("failureTimeToLive", noDuration)
})

describe("validate and validateAfter", () => {
  /** A pool whose validation says what `works` says, and notes whom it was asked about. */
  const validated = (
    works: (connection: Backend.Connection) => Effect.Effect<boolean>,
    options: { readonly validateAfter?: Duration.Input | undefined; readonly keepAlive?: Duration.Input | undefined } =
      {}
  ) =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const asked: Array<number> = []
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        idleTimeToLive: "Infinity",
        validate: (connection: Backend.Connection, key: string) =>
          Effect.suspend(() => {
            assert.strictEqual(key, connection.key)
            asked.push(connection.id)
            return works(connection)
          }),
        ...options
      })
      return { backend, asked, pool }
    })

  it.effect("ask before a lease of a session idle for longer, and keep what still works", () =>
    Effect.gen(function*() {
      const { asked, backend, pool } = yield* validated(() => Effect.succeed(true), { validateAfter: "10 seconds" })
      yield* visit(pool, "a")
      yield* TestClock.adjust("10 seconds")
      yield* visit(pool, "a")
      assert.deepStrictEqual(asked, [])
      yield* TestClock.adjust(10_001)
      yield* visit(pool, "a")
      assert.deepStrictEqual(asked, [1])
      assert.deepStrictEqual([backend.opened.length, backend.closed.length], [1, 0])
    }))

  it.effect("replace a session that no longer works, once, before the caller sees it", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* validated(({ id }) => Effect.succeed(id > 1))
      yield* visit(pool, "a")
      yield* TestClock.adjust("1 minute")
      const { id } = yield* visit(pool, "a")
      assert.strictEqual(id, 2)
      assert.deepStrictEqual(backend.closed.map((connection) => connection.id), [1])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalid, 1)
    }))

  it.effect("fail the caller when the session launched in its place does not work either", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* validated(() => Effect.succeed(false))
      yield* visit(pool, "a")
      yield* TestClock.adjust("1 minute")
      const error = yield* Effect.flip(visit(pool, "a"))
      assert.instanceOf(error, SessionPool.ValidationFailed)
      assert.deepStrictEqual([error.key, error.attempts], ["a", 2])
      assert.strictEqual(backend.opened.length, 2)
      backend.assertAllClosedOnce()
    }))

  it.effect("take a validation that dies, or runs longer than lookupTimeout, for a no", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* validated(({ id }) =>
        id === 1 ? Effect.die("gone") : id === 2 ? Effect.succeed(true) : Effect.never
      )
      yield* visit(pool, "a")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual((yield* visit(pool, "a")).id, 2)
      yield* visit(pool, "b")
      yield* TestClock.adjust("1 second")
      const fiber = yield* Effect.forkChild(Effect.exit(visit(pool, "b")), { startImmediately: true })
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(backend.closed.map(({ id }) => id), [1, 3])
      yield* Fiber.interrupt(fiber)
    }))

  it.effect("ask once for all callers that come meanwhile, and hold the session open", () =>
    Effect.gen(function*() {
      const answer = yield* Deferred.make<boolean>()
      const { asked, backend, pool } = yield* validated(() => Deferred.await(answer))
      yield* visit(pool, "a")
      yield* TestClock.adjust("1 minute")
      const fibers = [yield* ask(pool, "a"), yield* ask(pool, "a"), yield* ask(pool, "a")]
      assert.deepStrictEqual(asked, [1])
      yield* SessionPool.invalidate(pool, "a")
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* Deferred.succeed(answer, true)
      assert.deepStrictEqual((yield* Fiber.joinAll(fibers)).map(({ id }) => id), [1, 1, 1])
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
    }))

  it.effect("have 500 milliseconds as the default of validateAfter", () =>
    Effect.gen(function*() {
      const { asked, pool } = yield* validated(() => Effect.succeed(true))
      yield* visit(pool, "a")
      yield* TestClock.adjust(500)
      yield* visit(pool, "a")
      assert.deepStrictEqual(asked, [])
      yield* TestClock.adjust(501)
      yield* visit(pool, "a")
      assert.deepStrictEqual(asked, [1])
    }))

  it.effect("with a validateAfter of zero ask after any idle time", () =>
    Effect.gen(function*() {
      const { asked, pool } = yield* validated(() => Effect.succeed(true), { validateAfter: 0 })
      yield* visit(pool, "a")
      yield* TestClock.adjust(1)
      yield* visit(pool, "a")
      assert.deepStrictEqual(asked, [1])
    }))

  it.effect("never ask about a session that is in use", () =>
    Effect.gen(function*() {
      const { asked, pool } = yield* validated(() => Effect.succeed(true), { keepAlive: "1 second" })
      yield* SessionPool.get(pool, "a")
      yield* TestClock.adjust("1 hour")
      yield* visit(pool, "a")
      assert.deepStrictEqual(asked, [])
    }))

  it.effect("refuse a validateAfter without validate", () =>
    Effect.gen(function*() {
      const made = SessionPool.make({ lookup: Backend.make().open, validateAfter: 3 })
      const error = invalidOptions(yield* Effect.exit(made))
      assert.deepStrictEqual([error.option, error.value], ["validate", "undefined"])
      assert.include(error.message, "validateAfter")
    }))

  refuses("validate", ["ping", null])
  refuses("validateAfter", noDuration, { validate: () => Effect.succeed(true) })

  describe("keepAlive", () => {
    it.effect("validates idle sessions this often, and retires the dead ones without a caller", () =>
      Effect.gen(function*() {
        const dead = new Set<number>()
        const { asked, backend, pool } = yield* validated(({ id }) => Effect.succeed(!dead.has(id)), {
          keepAlive: "1 minute"
        })
        yield* visit(pool, "a")
        yield* visit(pool, "b")
        yield* TestClock.adjust("3 minutes")
        assert.sameMembers(asked, [1, 2, 1, 2, 1, 2])
        dead.add(2)
        yield* TestClock.adjust("1 minute")
        assert.deepStrictEqual(keysOf(backend.closed), ["b"])
        assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalid, 1)
      }))

    it.effect("is no use of a session: it still goes idle", () =>
      Effect.gen(function*() {
        const backend = Backend.make()
        const pool = yield* SessionPool.make({
          lookup: backend.open,
          idleTimeToLive: "10 minutes",
          validate: () => Effect.succeed(true),
          keepAlive: "1 minute"
        })
        yield* visit(pool, "a")
        yield* TestClock.adjust("15 minutes")
        assert.deepStrictEqual(keysOf(backend.closed), ["a"])
      }))

    it.effect("that always runs when the sweep does keeps no idle session alive", () =>
      Effect.gen(function*() {
        const backend = Backend.make()
        const pool = yield* SessionPool.make({
          lookup: backend.open,
          idleTimeToLive: "10 minutes",
          cleanupInterval: "5 minutes",
          validate: () => Effect.as(Effect.sleep("1 minute"), true),
          keepAlive: "150 seconds"
        })
        yield* visit(pool, "a")
        yield* TestClock.adjust("17 minutes")
        assert.deepStrictEqual(keysOf(backend.closed), ["a"])
        assert.strictEqual((yield* SessionPool.stats(pool)).closes.IdleTimeout, 1)
      }))

    it.effect("validates a few at a time", () =>
      Effect.gen(function*() {
        let [running, most] = [0, 0]
        const { pool } = yield* validated(() =>
          Effect.gen(function*() {
            most = Math.max(most, ++running)
            yield* Effect.sleep("1 second")
            running--
            return true
          }), { keepAlive: "1 minute" })
        for (let session = 0; session < 20; session++) yield* visit(pool, `s${session}`)
        yield* TestClock.adjust("110 seconds")
        assert.isAtLeast(most, 2)
        assert.isAtMost(most, 8)
      }))

    it.effect("is off by default", () =>
      Effect.gen(function*() {
        const { asked, pool } = yield* validated(() => Effect.succeed(true))
        yield* visit(pool, "a")
        yield* TestClock.adjust("1 day")
        assert.deepStrictEqual(asked, [])
      }))

    it.effect("is refused without validate", () =>
      Effect.gen(function*() {
        const made = SessionPool.make({ lookup: Backend.make().open, keepAlive: 3 })
        const error = invalidOptions(yield* Effect.exit(made))
        assert.deepStrictEqual([error.option, error.value], ["validate", "undefined"])
        assert.include(error.message, "keepAlive")
      }))

    refuses("keepAlive", noPositiveDuration, { validate: () => Effect.succeed(true) })
  })
})

describe("closed", () => {
  for (const how of ["completes", "fails", "dies"] as const) {
    it.effect(`retires a session as soon as it ${how}`, () =>
      Effect.gen(function*() {
        const backend = Backend.make()
        const died = yield* Deferred.make<void, string>()
        const pool = yield* SessionPool.make({
          lookup: backend.open,
          closed: (connection: Backend.Connection, key: string) =>
            connection.key === key && key === "a" ? Deferred.await(died) : Effect.never
        })
        yield* visit(pool, "a")
        yield* visit(pool, "b")
        const end = how === "completes" ? Exit.void : how === "fails" ? Exit.fail("reset") : Exit.die("reset")
        yield* Deferred.done(died, end)
        yield* TestClock.adjust(0)
        assert.deepStrictEqual(keysOf(backend.closed), ["a"])
        assert.strictEqual((yield* SessionPool.stats(pool)).closes.Disconnected, 1)
        yield* visit(pool, "a")
        assert.deepStrictEqual(keysOf(backend.opened), ["a", "b", "a"])
      }))
  }

  it.effect("watches an adopted session too, and is interrupted when the session closes", () =>
    Effect.gen(function*() {
      const watched: Array<string> = []
      const pool = yield* SessionPool.make({
        lookup: Backend.make().open,
        closed: (_: Backend.Connection, key: string) =>
          Effect.onInterrupt(Effect.never, () => Effect.sync(() => watched.push(key)))
      })
      yield* SessionPool.set(pool, "a", { key: "a", id: 0 })
      yield* SessionPool.invalidate(pool, "a")
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(watched, ["a"])
    }))

  refuses("closed", ["onclose", null])
})

describe("closeTimeout", () => {
  /** A full pool whose only session hangs while it closes, and a caller that waits for its place. */
  const hanging = (options: { readonly closeTimeout?: Duration.Input | undefined }) =>
    Effect.gen(function*() {
      const release = yield* Deferred.make<void>()
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.acquireRelease(Effect.succeed({ key, id: 0 }), () =>
            key === "a" ? Deferred.await(release) : Effect.void),
        capacity: 1,
        acquireTimeout: "Infinity",
        ...options
      })
      const events = yield* listen(pool)
      yield* visit(pool, "a")
      const fiber = yield* ask(pool, "b")
      return { pool, events, fiber, release: Deferred.succeed(release, undefined) }
    })

  it.effect("frees the place of a close that hangs, reports it, and leaves the close to itself", () =>
    Effect.gen(function*() {
      const { events, fiber, pool, release } = yield* hanging({ closeTimeout: "5 seconds" })
      yield* TestClock.adjust(4999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* Fiber.join(fiber)).key, "b")
      assert.strictEqual((yield* SessionPool.stats(pool)).retired, 0)
      yield* TestClock.adjust("1 second")
      yield* release
      yield* TestClock.adjust(0)
      const about = events.filter((event) => event.key === "a").map((event) =>
        event._tag === "Closed" || event._tag === "CloseTimedOut" ? [event._tag, event.duration] : [event._tag]
      )
      assert.deepStrictEqual(about, [["Launched"], ["Retired"], ["CloseTimedOut", 5000], ["Closed", 6000]])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Evicted, 1)
    }))

  it.effect("infinity waits for the close however long it takes", () =>
    Effect.gen(function*() {
      const { events, fiber, release } = yield* hanging({ closeTimeout: "Infinity" })
      yield* TestClock.adjust("1 day")
      assert.isUndefined(fiber.pollUnsafe())
      yield* release
      yield* Fiber.join(fiber)
      assert.notInclude(events.map(({ _tag }) => _tag), "CloseTimedOut")
    }))

  it.effect("is 30 seconds by default", () =>
    Effect.gen(function*() {
      const { fiber } = yield* hanging({})
      yield* TestClock.adjust(29_999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* Fiber.join(fiber)).key, "b")
    }))

  refuses("closeTimeout", noPositiveDuration)
})

describe("drainTimeout", () => {
  /** A pool that closes while a session is leased; `closing` is its end. */
  const draining = (options: { readonly drainTimeout?: Duration.Input | undefined }) =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const scope = yield* Scope.make()
      const pool = yield* Scope.provide(SessionPool.make({ lookup: backend.open, ...options }), scope)
      const held = yield* lease(pool, "leased")
      yield* visit(pool, "idle")
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      yield* TestClock.adjust(0)
      return { backend, held, closing }
    })

  it.effect("lets leases end before their sessions are closed; idle ones close at once", () =>
    Effect.gen(function*() {
      const { backend, closing, held } = yield* draining({ drainTimeout: "10 seconds" })
      assert.deepStrictEqual(keysOf(backend.closed), ["idle"])
      yield* TestClock.adjust("9 seconds")
      assert.deepStrictEqual(keysOf(backend.closed), ["idle"])
      yield* held.release
      yield* Fiber.join(closing)
      assert.deepStrictEqual(keysOf(backend.closed), ["idle", "leased"])
    }))

  it.effect("closes what is still leased when it is over, and a release after that changes nothing", () =>
    Effect.gen(function*() {
      const { backend, closing, held } = yield* draining({ drainTimeout: "10 seconds" })
      yield* TestClock.adjust("10 seconds")
      yield* Fiber.join(closing)
      assert.deepStrictEqual(keysOf(backend.closed), ["idle", "leased"])
      yield* held.release
      backend.assertAllClosedOnce()
    }))

  it.effect("infinity waits for every lease", () =>
    Effect.gen(function*() {
      const { backend, closing, held } = yield* draining({ drainTimeout: "Infinity" })
      yield* TestClock.adjust("1 day")
      assert.deepStrictEqual(keysOf(backend.closed), ["idle"])
      yield* held.release
      yield* Fiber.join(closing)
      backend.assertAllClosedOnce()
    }))

  it.effect("is zero by default: the end of the pool waits for no lease", () =>
    Effect.gen(function*() {
      const { backend, closing } = yield* draining({})
      yield* Fiber.join(closing)
      assert.sameMembers(keysOf(backend.closed), ["idle", "leased"])
      backend.assertAllClosedOnce()
    }))

  refuses("drainTimeout", noDuration)
})

describe("leakDetection", () => {
  const leaks = (events: ReadonlyArray<SessionPool.Event<string, unknown>>) =>
    events.flatMap((event) => event._tag === "LeaseLeaked" ? [event] : [])

  it.effect("reports a lease held longer once, with the span in which it was taken", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Backend.make().open, leakDetection: "1 minute" })
      const events = yield* listen(pool)
      yield* visit(pool, "returned")
      yield* Effect.withSpan(lease(pool, "leaked"), "handler of the request")
      yield* TestClock.adjust(59_999)
      assert.deepStrictEqual(leaks(events), [])
      yield* TestClock.adjust("10 minutes")
      const [leak, ...more] = leaks(events)
      assert.deepStrictEqual([leak?.key, more.length], ["leaked", 0])
      assert.include(leak?.site, "handler of the request")
    }))

  it.effect("reports the stack where there is no span, for use as well as get", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Backend.make().open, leakDetection: "1 minute" })
      const events = yield* listen(pool)
      const fiber = yield* Effect.forkChild(SessionPool.use(pool, "used", () => Effect.never))
      yield* TestClock.adjust("2 minutes")
      const [leak, ...more] = leaks(events)
      assert.deepStrictEqual([leak?.key, more.length], ["used", 0])
      assert.include(leak?.site, "lease taken here")
      yield* Fiber.interrupt(fiber)
    }))

  it.effect("names the line that takes the lease, of the pool's functions and of a service's, with and without a span", () =>
    Effect.gen(function*() {
      const reported: Array<string> = []
      const logger = Logger.make(({ message }) => void reported.push(String(message)))
      class Shells extends SessionPool.Service<Shells>()("test/Shells", {
        lookup: (key: string) => Effect.succeed(key),
        leakDetection: "1 minute"
      }) {}
      yield* Effect.gen(function*() {
        const pool = yield* Shells
        const nothing = () => Effect.never
        // Without a span, each by name, of whom the stack tells.
        function forgetsGet() {
          return Effect.asVoid(SessionPool.get(pool, "a"))
        }
        function forgetsOption() {
          return Effect.asVoid(SessionPool.getOption(pool, "a"))
        }
        function forgetsUse() {
          return Effect.asVoid(SessionPool.use(pool, "a", nothing))
        }
        function forgetsService() {
          return Effect.asVoid(Shells.get("a"))
        }
        function forgetsServiceOption() {
          return Effect.asVoid(Shells.getOption("a"))
        }
        function forgetsServiceUse() {
          return Effect.asVoid(Shells.use("a", nothing))
        }
        const all = [forgetsGet, forgetsOption, forgetsUse, forgetsService, forgetsServiceOption, forgetsServiceUse]
        for (const forgetful of all) {
          reported.length = 0
          yield* Effect.forkChild(Effect.suspend<void, unknown, Scope.Scope | Shells>(forgetful), {
            startImmediately: true
          })
          yield* TestClock.adjust("1 minute")
          assert.strictEqual(reported.length, 1, forgetful.name)
          assert.match(String(reported[0]), new RegExp(`\\b${forgetful.name}\\b.*options\\.test`), forgetful.name)
        }
        reported.length = 0
        yield* Effect.withSpan(Effect.suspend(forgetsGet), "the handler")
        yield* TestClock.adjust("1 minute")
        assert.match(String(reported[0]), /span the handler .*\n[\s\S]*\bforgetsGet\b/)
      }).pipe(Effect.provide(Shells.layer), Effect.provide(Logger.layer([logger])))
    }))

  it.effect("is off by default", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Backend.make().open })
      const events = yield* listen(pool)
      yield* lease(pool, "a")
      yield* TestClock.adjust("30 days")
      assert.deepStrictEqual(leaks(events), [])
    }))

  it.effect("reports a use of a session that is there, which is leased once", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Backend.make().open, leakDetection: "1 minute" })
      const events = yield* listen(pool)
      yield* visit(pool, "a")
      const using = yield* Effect.forkChild(SessionPool.use(pool, "a", () => Effect.never), { startImmediately: true })
      const info = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
      assert.deepStrictEqual([info.leases, info.requestCount], [1, 2])
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(leaks(events).length, 1)
      yield* Fiber.interrupt(using)
      assert.strictEqual((yield* SessionPool.stats(pool)).active, 0)
    }))
  refuses("leakDetection", noPositiveDuration)
})

describe("name", () => {
  refuses("name", [5, null, {}])

  const namesInMetrics = (name: string | undefined) =>
    Effect.scoped(Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Backend.make().open, name })
      yield* visit(pool, "a")
      const metrics = (yield* Metric.snapshot).filter(({ id }) => id.startsWith("session_pool_launches"))
      return metrics.map(({ attributes, state }) => [attributes, state])
    })).pipe(Effect.provideService(Metric.MetricRegistry, new Map()))

  it.effect("is in the metrics of the pool", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* namesInMetrics("shells"), [
        [{ pool: "shells", outcome: "success" }, { count: 1, incremental: true }]
      ])
    }))

  it.effect("is \"default\" by default", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* namesInMetrics(undefined), [
        [{ pool: "default", outcome: "success" }, { count: 1, incremental: true }]
      ])
    }))
})
