/** Defaults and refused values of the options, and `config`. The effect of an option is tested with its feature. */
import { assert, describe } from "@effect/vitest"
import { ConfigProvider, Duration, Effect } from "effect"
import { SessionPool } from "../src/index.ts"
import * as Options from "../src/internal/options.ts"
import { makePool, visit } from "./kit/pool/calls.ts"
import { defectOf, test, withPool } from "./kit/pool/withPool.ts"

const needed = { lookup: Effect.succeed<string>, groupBy: (key: string) => key, validate: () => Effect.succeed(true) }

const noCount = [-1, 1.5, Number.NaN, -Infinity, "10"]
const noTime = [-1, Number.NaN, "-1 second", "soon"]
const counts = { "100": 100, Infinity, infinity: Infinity, " Infinity ": Infinity }
const times = { "5 seconds": Duration.seconds(5), infinity: Duration.infinity, " Infinity ": Duration.infinity }

/** Each kind: the rule, values that it refuses, texts that `config` reads, and texts that `config` refuses. */
const kinds = {
  count: ["an integer of at least 0, or infinity", noCount, { "0": 0, ...counts }, ["-1", "1.5", "many", " "]],
  positiveCount: ["an integer of at least 1, or infinity", [0, ...noCount], counts, ["0", "1.5", "many", "NaN"]],
  time: ["a duration that is not negative", noTime, { "0 millis": Duration.zero, ...times }, ["-1 second", "soon"]],
  positiveTime: ["a duration greater than zero", [0, ...noTime], times, ["0 millis", "-Infinity", "soon"]]
} as const

/** Each option: its kind, and its default. */
const options: Record<keyof SessionPool.OperatorOptions | "idleTimeToLive", readonly [keyof typeof kinds, unknown]> = {
  capacity: ["positiveCount", Infinity],
  groupCapacity: ["positiveCount", Infinity],
  acquireTimeout: ["time", 30_000],
  maxWaiting: ["count", Infinity],
  idleTimeToLive: ["time", 1_800_000],
  cleanupInterval: ["positiveTime", undefined],
  maxErrorCount: ["positiveCount", 10],
  maxLifetime: ["positiveTime", Infinity],
  lookupTimeout: ["positiveTime", 60_000],
  failureTimeToLive: ["time", 0],
  validateAfter: ["time", 500],
  validateTimeout: ["positiveTime", 60_000],
  keepAlive: ["positiveTime", Infinity],
  closeTimeout: ["positiveTime", 30_000],
  drainTimeout: ["time", 0],
  leakDetection: ["positiveTime", Infinity]
}

/** What `config` reads from these variables. */
const read = (env: Record<string, string>, prefix?: string) => {
  const provider = ConfigProvider.fromEnv({ env })
  const options = Effect.provideService(SessionPool.config(prefix), ConfigProvider.ConfigProvider, provider)
  return Effect.map(options, (options) => Object.entries(options).filter(([, value]) => value !== undefined))
}

const variable = (name: string) => name.replaceAll(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()

describe("options", () => {
  for (const [name, [kind, byDefault]] of Object.entries(options)) {
    const [allowed, refused, good, bad] = kinds[kind]

    test(`${name} is ${byDefault} by default, and must be ${allowed}`, function*() {
      const resolved = new Map(Object.entries<unknown>(Options.resolveUnsafe(needed))).get(name)
      assert.strictEqual(typeof resolved === "function" ? resolved("a") : resolved, byDefault)
      for (const value of refused) {
        const shown = typeof value === "string" ? `"${value}"` : String(value)
        const message = yield* defectOf(SessionPool.make({ ...needed, [name]: value }))
        assert.include(message, `SessionPool: the option ${name} is ${shown}; it must be ${allowed}`)
      }
    })

    test(`${name} is read from ${variable(name)}, which must be ${allowed}`, function*() {
      for (const [text, value] of Object.entries<unknown>(good)) {
        assert.deepStrictEqual(yield* read({ [`POOL_${variable(name)}`]: text }, "POOL"), [[name, value]])
      }
      for (const text of bad) {
        const error = yield* Effect.flip(read({ [variable(name)]: text }))
        assert.strictEqual(error._tag, "ConfigError")
        assert.match(String(error), new RegExp(`${allowed}[^]*${variable(name)}`, "i"))
      }
    })
  }

  test("an option whose variable is empty or missing keeps its default", function*() {
    const empty = Object.fromEntries(Object.keys(options).map((name) => [variable(name), ""]))
    assert.deepStrictEqual([yield* read(empty), yield* read({})], [[], []])
    yield* SessionPool.make({ ...needed, ...(yield* SessionPool.config("NONE")) })
  })

  const pairs = {
    groupCapacity: "groupBy",
    keepAlive: "validate",
    validateAfter: "validate",
    validateTimeout: "validate"
  }
  for (const [name, other] of Object.entries(pairs)) {
    test(`${name} is refused without ${other}`, function*() {
      const message = `SessionPool: the option ${other} is undefined; it must be a function when ${name} is set.`
      assert.strictEqual(yield* defectOf(makePool({ [name]: 3 })), message)
    })
  }

  withPool("a call dies if idleTimeToLive returns no duration", { idleTimeToLive: () => -5 }, function*({ pool }) {
    assert.include(yield* defectOf(visit(pool, "a")), "the option idleTimeToLive is -5; it must be a duration")
  })
})
