/** `SessionPool.Service`, and the three forms of every operation: data-first, data-last, and static of a service. */
import { assert } from "@effect/vitest"
import { ConfigProvider, Context, Effect, Exit, Fiber, Layer, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import { fork } from "./kit/pool/calls.ts"
import { outcomeOf, test } from "./kit/pool/withPool.ts"

class Shells extends SessionPool.Service<Shells>()("test/Shells", {
  lookup: (user: string) => Effect.succeed(`shell of ${user}`),
  maxErrorCount: 1
}) {}

const isAda = ({ key }: { readonly key: string }) => key === "ada"

const names = ["get", "lease", "touch", "getOption", "invalidate", "recordError", "info"] as const
const getters = ["entries", "keys", "size", "stats", "sweep"] as const

const functions: Record<string, unknown> = SessionPool

type Name = keyof typeof SessionPool & keyof typeof Shells

/** The arguments of each operation after the pool. */
const operations: ReadonlyArray<readonly [Name, ...ReadonlyArray<unknown>]> = [
  ...names.map((name) => [name, "ada"] as const),
  ["use", "ada", Effect.succeed],
  ["set", "ada", "adopted"],
  ["set", "ada", "adopted", Effect.void],
  ["invalidateAll", isAda],
  ...getters.map((name) => [name] as const)
]

for (const [name, ...args] of operations) {
  test(`${name} with ${args.length} arguments does the same in each of its forms`, function*() {
    const outcome = (form: (pool: unknown) => unknown) =>
      Effect.gen(function*() {
        const pool = yield* Shells
        for (const user of ["ada", "bob"]) yield* SessionPool.use(pool, user, Effect.succeed)
        // An operation of the table with its own arguments; types.test-d.ts checks the types of each form.
        const exit = yield* Effect.exit(form(pool) as Effect.Effect<unknown, unknown, Scope.Scope | Shells>)
        assert.isTrue(Exit.isSuccess(exit))
        return JSON.stringify([exit, yield* SessionPool.stats(pool), yield* SessionPool.entries(pool)])
      }).pipe(Effect.scoped, Effect.provide(Layer.fresh(Shells.layer)))
    // As above.
    const operation = functions[name] as (...args: ReadonlyArray<unknown>) => unknown
    const property: unknown = Shells[name]
    const expected = yield* outcome((pool) => operation(pool, ...args))
    // As above.
    if (args.length > 0) assert.strictEqual(yield* outcome(operation(...args) as typeof operation), expected)
    const accessed = typeof property === "function" ? property(...args) : property
    assert.strictEqual(yield* outcome(() => accessed), expected)
  })
}

test("the end of its layer ends the pool and the events of a service", function*() {
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(Shells.layer, scope)
  const reading = yield* fork(Effect.provideContext(Stream.runCollect(Shells.events), context))
  yield* TestClock.adjust(0)
  yield* Effect.provideContext(Shells.set("ada", "adopted"), context)
  yield* Scope.close(scope, Exit.void)
  assert.deepStrictEqual((yield* Fiber.join(reading)).map(({ _tag }) => _tag), ["Adopted", "Retired", "Closed"])
  const exit = yield* Effect.exit(Effect.provideContext(Shells.use("ada", Effect.succeed), context))
  assert.strictEqual(outcomeOf(exit), "PoolClosed")
})

class Greeting extends Context.Service<Greeting, string>()("test/Greeting") {}

class Greeters extends SessionPool.Service<Greeters>()(
  "test/Greeters",
  Effect.map(SessionPool.config("GREETERS"), (options) => ({
    ...options,
    name: options.capacity === undefined ? undefined : "small",
    lookup: (user: string) => Effect.map(Greeting, (greeting) => `${greeting}, ${user}`)
  }))
) {}

const greeters = (greeting: string, env: Record<string, string>) =>
  Layer.fresh(Greeters.layer).pipe(
    Layer.provide(Layer.succeed(Greeting, greeting)),
    Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
  )

test("two layers of a service share neither options nor sessions nor services of the lookup", function*() {
  const small = yield* Layer.build(greeters("Hello", { GREETERS_CAPACITY: "1", GREETERS_MAX_WAITING: "0" }))
  const other = yield* Layer.build(greeters("Bonjour", {}))
  const get = (user: string) => Effect.exit(Greeters.get(user))
  assert.deepStrictEqual(yield* Effect.provideContext(get("ada"), small), Exit.succeed("Hello, ada"))
  assert.deepStrictEqual(yield* Effect.provideContext(get("ada"), other), Exit.succeed("Bonjour, ada"))
  assert.deepStrictEqual(yield* Effect.provideContext(get("bob"), other), Exit.succeed("Bonjour, bob"))
  assert.strictEqual(outcomeOf(yield* Effect.provideContext(get("bob"), small)), "CapacityExceeded")
  assert.include(String(Context.get(small, Greeters)), "small")
  assert.include(String(Context.get(other, Greeters)), "test/Greeters")
})

test("a layer fails when the options of its service cannot be read", function*() {
  const error = yield* Effect.flip(Layer.build(greeters("Hello", { GREETERS_CAPACITY: "none" })))
  assert.strictEqual(error._tag, "ConfigError")
})
