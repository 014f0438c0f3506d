/** Exchanges whose events another replica takes list by list. Each ends, also if that replica fails. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Scope } from "effect"
import { TestClock } from "effect/testing"
import * as StreamedExchanges from "../../src/gateway/cluster/StreamedExchanges.ts"
import type { Take } from "../../src/gateway/conversation/Exchange.ts"
import * as Takes from "../kit/cluster/takes.ts"

const page = (text: string) => ({ events: [{ text }], done: false })
const finite = () => Takes.of([[{ text: "1" }], [{ text: "2" }]])
/** One event, and then nothing for ever. */
const endless = () => Takes.of([[{ text: "1" }]], Effect.never)

/** Keeps an exchange. `state.over` becomes true when its scope closes. */
const keep = (kept: ReturnType<typeof StreamedExchanges.make>, take: Take, client = 1) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const state = { over: false }
    yield* Scope.addFinalizer(scope, Effect.sync(() => (state.over = true)))
    return { id: yield* kept.keep(take, scope, client), state }
  })

describe("streamed exchanges", () => {
  it.effect("an exchange ends if no replica asks for its events within five seconds", () =>
    Effect.gen(function*() {
      const kept = StreamedExchanges.make()
      const { id, state } = yield* keep(kept, finite())
      yield* TestClock.adjust("4999 millis")
      assert.isFalse(state.over)
      yield* TestClock.adjust("1 millis")
      assert.isTrue(state.over)
      assert.strictEqual((yield* Effect.flip(kept.next(id)))._tag, "Moved")
    }))

  it.effect("an exchange waits for a slow reader without a limit after the first events", () =>
    Effect.gen(function*() {
      const kept = StreamedExchanges.make()
      const { id, state } = yield* keep(kept, finite())
      assert.deepStrictEqual(yield* kept.next(id), page("1"))
      yield* TestClock.adjust("10 minutes")
      assert.isFalse(state.over)
      assert.deepStrictEqual(yield* kept.next(id), page("2"))
    }))

  it.effect("an exchange ends when the connection of its reader breaks, and others stay", () =>
    Effect.gen(function*() {
      const kept = StreamedExchanges.make()
      const [one, other] = [yield* keep(kept, endless(), 1), yield* keep(kept, endless(), 2)]
      yield* Effect.forEach([one, other], ({ id }) => kept.next(id))
      yield* kept.disconnected(1)
      assert.deepStrictEqual([one.state.over, other.state.over], [true, false])
    }))

  it.effect("an exchange fails its reader and closes its scope if taking its events dies", () =>
    Effect.gen(function*() {
      const kept = StreamedExchanges.make()
      const { id, state } = yield* keep(kept, Takes.of([[{ text: "1" }]], Effect.die("broken")))
      yield* kept.next(id)
      assert.isTrue(Exit.hasDies(yield* Effect.exit(kept.next(id))))
      assert.isTrue(state.over)
    }))
})
