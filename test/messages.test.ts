/** What a person reads when a pool refuses: the numbers, and what to do. */
import { assert, describe, it } from "@effect/vitest"
import { Cause, ConfigProvider, Effect, Exit, Fiber, Schema, Stream, Tracer } from "effect"
import { TestClock } from "effect/testing"
import { SessionKey, SessionPool } from "../src/index.ts"
import { fork } from "./kit/pool/fork.ts"

describe("CapacityExceeded", () => {
  const limits = { pool: { capacity: 2 }, group: { capacity: 9, groupCapacity: 2 } } as const

  for (const scope of ["pool", "group"] as const) {
    const name = scope === "pool" ? "capacity" : "groupCapacity"
    const make = SessionPool.make({
      lookup: (key: string) => Effect.succeed(key),
      acquireTimeout: "7 seconds",
      groupBy: (key) => key.slice(0, 1),
      ...limits[scope]
    })

    it.effect(`of the ${scope} names the limit, how long the caller waited, and how many others do`, () =>
      Effect.gen(function*() {
        const pool = yield* make
        yield* TestClock.adjust("1 minute")
        yield* SessionPool.get(pool, "x1")
        yield* SessionPool.get(pool, "x2")
        const first = yield* fork(Effect.flip(Effect.scoped(SessionPool.get(pool, "x3"))))
        yield* TestClock.adjust("1 second")
        yield* fork(Effect.exit(Effect.scoped(SessionPool.get(pool, "x4"))))
        yield* TestClock.adjust("6 seconds")
        const error = yield* Fiber.join(first)
        assert.strictEqual(
          error.message,
          `All 2 places are taken (${name}) and no idle session could be evicted in time; waited 7000 ms, 1 waiting. ` +
            `Retry later, or raise ${name}, acquireTimeout or maxWaiting.`
        )
        const setting = yield* fork(Effect.flip(SessionPool.set(pool, "x5", "adopted")))
        yield* TestClock.adjust("7 seconds")
        assert.include((yield* Fiber.join(setting)).message, "waited 7000 ms")
      }))
  }

  it.effect("of the pool says so, though groups have a limit that is not reached", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.succeed(key),
        groupBy: (key) => key.slice(0, 1),
        capacity: 2,
        groupCapacity: 2,
        maxWaiting: 0
      })
      yield* SessionPool.get(pool, "x1")
      yield* SessionPool.get(pool, "y1")
      for (const key of ["x2", "z1"]) {
        const error = yield* Effect.flip(Effect.scoped(SessionPool.get(pool, key)))
        assert.include(error.message, "All 2 places are taken (capacity)")
        assert.include((yield* Effect.flip(SessionPool.set(pool, key, "adopted"))).message, "(capacity)")
      }
    }))
})

describe("the other refusals", () => {
  it.effect("say what to do about a lookup that takes too long, with its time and its limit", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (_: string) => Effect.never, lookupTimeout: "7 seconds" })
      const getting = yield* fork(Effect.flip(Effect.scoped(SessionPool.get(pool, "secret"))))
      yield* TestClock.adjust("7 seconds")
      assert.strictEqual(
        (yield* Fiber.join(getting)).message,
        "The lookup did not open the session within 7000 ms (it ran 7000 ms). " +
          "Look for what it waits for, or raise lookupTimeout."
      )
    }))

  it.effect("say how often validate said no in a row, and whose fault it may be", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.succeed(key),
        validateAfter: "1 second",
        validate: () => Effect.succeed(false)
      })
      yield* Effect.scoped(SessionPool.get(pool, "secret"))
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(
        (yield* Effect.flip(Effect.scoped(SessionPool.get(pool, "secret")))).message,
        "validate refused 2 sessions in a row, the last one just launched. " +
          "The back end is broken, or validate is wrong."
      )
    }))

  it.effect("say that the pool is closed, and how long it may be used", () =>
    Effect.gen(function*() {
      const pool = yield* Effect.scoped(SessionPool.make({ lookup: (key: string) => Effect.succeed(key) }))
      const error = yield* Effect.flip(Effect.scoped(SessionPool.get(pool, "secret")))
      assert.include(error.message, "The session pool is closed")
      assert.include(error.message, "while the layer or scope that made it is open")
    }))
})

describe("InvalidOptions", () => {
  const refusals: ReadonlyArray<readonly [SessionPool.OperatorOptions & { readonly closed?: never }, string]> = [
    [{ capacity: 0 }, "the option capacity is 0; it must be an integer of at least 1, or infinity."],
    [{ maxWaiting: -1 }, "the option maxWaiting is -1; it must be an integer of at least 0, or infinity."],
    [
      { acquireTimeout: -1 },
      "the option acquireTimeout is -1; it must be a duration that is not negative, such as \"30 minutes\" or 500 " +
      "(milliseconds)."
    ],
    [
      { cleanupInterval: 0 },
      "the option cleanupInterval is 0; it must be a duration greater than zero, such as \"5 minutes\"."
    ]
  ]
  for (const [options, message] of refusals) {
    it.effect(`says: ${message}`, () =>
      Effect.gen(function*() {
        const exit = yield* Effect.exit(SessionPool.make({ lookup: Effect.succeed<string>, ...options }))
        assert.include(
          JSON.stringify(Exit.isFailure(exit) ? String(exit.cause) : ""),
          JSON.stringify(message).slice(1, -1)
        )
      }))
  }
})

describe("an option of a program without types", () => {
  const circular: { self?: unknown } = {}
  circular.self = circular
  const values: ReadonlyArray<readonly [unknown, string]> = [
    ["100", "the option capacity is \"100\"; it must be an integer"],
    [5n, "the option capacity is 5n; it must be an integer"],
    [{ of: 5n }, "the option capacity is {\"of\":5n}; it must be an integer"],
    [circular, "the option capacity is {\"self\":[Circular]}; it must be an integer"],
    [Symbol("many"), "the option capacity is Symbol(many); it must be an integer"]
  ]
  for (const [capacity, message] of values) {
    it.effect(`is refused with what it is: ${message}`, () =>
      Effect.gen(function*() {
        const options: object = { capacity }
        const exit = yield* Effect.exit(SessionPool.make({ lookup: Effect.succeed<string>, ...options }))
        assert.include(Exit.isFailure(exit) ? String(Cause.squash(exit.cause)) : "", message)
      }))
  }
})

describe("a ConfigError", () => {
  const read = (name: string, value: string) =>
    Effect.flip(Effect.provideService(
      SessionPool.config(),
      ConfigProvider.ConfigProvider,
      ConfigProvider.fromEnv({ env: { [name]: value } })
    ))

  it.effect("says what is allowed", () =>
    Effect.gen(function*() {
      assert.include(String(yield* read("CAPACITY", "0")), "an integer of at least 1, or Infinity")
      assert.include(String(yield* read("MAX_WAITING", "-1")), "an integer of at least 0, or Infinity")
      assert.include(String(yield* read("KEEP_ALIVE", "0 seconds")), "a duration greater than zero, such as")
    }))

  it.effect("is none for a zero where zero means something", () =>
    Effect.gen(function*() {
      const names = ["ACQUIRE_TIMEOUT", "IDLE_TIME_TO_LIVE", "FAILURE_TIME_TO_LIVE", "VALIDATE_AFTER", "DRAIN_TIMEOUT"]
      for (const name of names) {
        const options = yield* Effect.provideService(
          SessionPool.config(),
          ConfigProvider.ConfigProvider,
          ConfigProvider.fromEnv({ env: { [name]: "0 seconds" } })
        )
        assert.strictEqual(Object.values(options).filter((value) => value !== undefined).length, 1, name)
      }
    }))
})

describe("InvalidSessionKey", () => {
  it.effect("says which part is empty, or which one has the separator", () =>
    Effect.gen(function*() {
      const message = (backend: string, session: string) =>
        Effect.map(Effect.flip(SessionKey.make(backend, session)), (error) => error.message)
      assert.include(yield* message("", "s"), "The backend of a session key is empty")
      assert.include(yield* message("b", ""), "The session of a session key is empty")
      assert.include(yield* message("a/b", "s"), "The backend of a session key contains a \"/\"")
    }))
})

describe("the schema of a SessionKey", () => {
  it("says whether the separator is missing or the back end is empty", () => {
    const refused = (input: string) => {
      const exit = Schema.decodeUnknownExit(SessionKey.schema)(input)
      return Exit.isFailure(exit) ? String(exit.cause) : ""
    }
    assert.include(refused("no separator"), "the \"/\" is missing")
    assert.include(refused("/session"), "The backend of a session key is empty")
  })
})

describe("an event", () => {
  it.effect("of a leaked lease names a span of another process by its id", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (key: string) => Effect.succeed(key), leakDetection: "1 minute" })
      const leaked = yield* fork(Stream.runHead(
        Stream.filter(SessionPool.events(pool), ({ _tag }) => _tag === "LeaseLeaked")
      ))
      yield* TestClock.adjust(0)
      yield* Effect.withParentSpan(
        SessionPool.get(pool, "a"),
        Tracer.externalSpan({ spanId: "span-7", traceId: "trace-9" })
      )
      yield* TestClock.adjust("2 minutes")
      const event = yield* Fiber.join(leaked)
      assert.isTrue(event._tag === "Some" && event.value._tag === "LeaseLeaked")
      assert.include(JSON.stringify(event), "span span-7 (trace-9)")
    }))

  it.effect("says how long a lookup took", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (key: string) => Effect.delay(Effect.succeed(key), "2 seconds") })
      yield* TestClock.adjust("1 minute")
      const first = yield* fork(Stream.runHead(SessionPool.events(pool)))
      yield* TestClock.adjust(0)
      yield* fork(Effect.scoped(SessionPool.get(pool, "a")))
      yield* TestClock.adjust("3 seconds")
      const event = yield* Fiber.join(first)
      assert.isTrue(event._tag === "Some" && event.value._tag === "Launched" && event.value.duration === 2000)
    }))
})
