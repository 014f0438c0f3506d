/** The lock under which one replica after the other makes the tables, over a connection that does as it is told. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Logger } from "effect"
import { TestClock } from "effect/testing"
import * as MigrationLock from "../../src/gateway/cluster/MigrationLock.ts"

/** `others`: it is another's; `silent`: the database does not answer. */
const make = () => {
  const state: { lock: "free" | "others" | "silent" } = { lock: "others" }
  const asked: Array<string> = []
  const ask = <A>(text: string, answer: () => A) =>
    Effect.suspend(() => {
      asked.push(/\w+(?=\()/.exec(text)?.[0] ?? "")
      return state.lock === "silent" ? Effect.never : Effect.sync(answer)
    })
  return {
    state,
    asked,
    execute: (text: string) => ask(text, () => [{ locked: state.lock === "free" }]),
    executeRaw: (text: string) => ask(text, () => ({}))
  }
}

describe("the migration lock", () => {
  it.effect("a replica polls for the lock until it is free, logs the wait once, and releases the lock with the scope", () => {
    const lines: Array<string> = []
    const logger = Logger.make(({ message }) => void lines.push(String(message)))
    return Effect.gen(function*() {
      const connection = make()
      const taking = yield* Effect.forkChild(Effect.scoped(Effect.as(MigrationLock.take(connection), "taken")))
      yield* TestClock.adjust("30 seconds")
      assert.isUndefined(taking.pollUnsafe())
      connection.state.lock = "free"
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* Fiber.join(taking), "taken")
      assert.strictEqual(connection.asked.at(-1), "pg_advisory_unlock")
      assert.deepStrictEqual(lines, ["Another replica creates the tables; this one starts when the tables are ready"])
    }).pipe(Effect.provide(Logger.layer([logger])))
  })

  for (const lock of ["others", "silent"] as const) {
    it.effect(`a replica gives up after a minute, and its error says what to do (${lock})`, () =>
      Effect.gen(function*() {
        const connection = make()
        connection.state.lock = lock
        const taking = yield* Effect.forkChild(Effect.flip(Effect.scoped(MigrationLock.take(connection))))
        yield* TestClock.adjust("59 seconds")
        assert.isUndefined(taking.pollUnsafe())
        yield* TestClock.adjust("3 seconds")
        const error = yield* Fiber.join(taking)
        assert.strictEqual(error._tag, "CannotJoin")
        assert.match(error.message, /for 1m .*pg_terminate_backend\(pid\) .*84202026$/)
      }))

    it.effect(`an interrupted replica stops waiting at once, and releases the lock (${lock})`, () =>
      Effect.gen(function*() {
        const connection = make()
        connection.state.lock = lock
        const taking = yield* Effect.forkChild(Effect.scoped(MigrationLock.take(connection)))
        yield* TestClock.adjust("10 seconds")
        const interrupting = yield* Effect.forkChild(Fiber.interrupt(taking))
        yield* TestClock.adjust("2 seconds")
        assert.isDefined(interrupting.pollUnsafe())
        // It may have been had in the last moment.
        assert.strictEqual(connection.asked.at(-1), "pg_advisory_unlock")
      }))
  }
})
