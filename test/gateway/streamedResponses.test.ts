/** Responses that another replica takes piece by piece: each ends, whatever becomes of who asked for it. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope, Stream } from "effect"
import { HttpServerResponse } from "effect/http"
import { TestClock } from "effect/testing"
import * as StreamedResponses from "../../src/gateway/cluster/StreamedResponses.ts"

const bytes = (...values: ReadonlyArray<number>) => Uint8Array.from(values)
const finite = Stream.concat(Stream.make(bytes(1)), Stream.make(bytes(2)))
/** A chunk, and then nothing for ever. */
const endless = Stream.concat(Stream.make(bytes(1)), Stream.never)

/** Keeps a response, whose request is over when `over` says so. */
const keep = (kept: ReturnType<typeof StreamedResponses.make>, body: Stream.Stream<Uint8Array, unknown>, client = 1) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const state = { over: false }
    yield* Scope.addFinalizer(scope, Effect.sync(() => (state.over = true)))
    const response = HttpServerResponse.stream(body, { status: 201, headers: { "x-a": "b" } })
    const { headers, id, status } = yield* kept.keep(response, body, scope, client)
    assert.deepStrictEqual([status, headers["x-a"]], [201, "b"])
    return { id, state }
  })

describe("a response that is taken piece by piece", () => {
  it.effect("comes in order; its request is over at its end, and it is not there any more", () =>
    Effect.gen(function*() {
      const kept = StreamedResponses.make()
      const { id, state } = yield* keep(kept, finite)
      assert.deepStrictEqual(yield* kept.next(id), [bytes(1)])
      assert.deepStrictEqual(yield* kept.next(id), [bytes(2)])
      assert.isFalse(state.over)
      assert.deepStrictEqual(yield* kept.next(id), [])
      assert.isTrue(state.over)
      assert.strictEqual((yield* Effect.flip(kept.next(id)))._tag, "Moved")
    }))

  it.effect("is let go when nobody asks for it within five seconds", () =>
    Effect.gen(function*() {
      const kept = StreamedResponses.make()
      const { id, state } = yield* keep(kept, finite)
      yield* TestClock.adjust("4999 millis")
      assert.isFalse(state.over)
      yield* TestClock.adjust("1 millis")
      assert.isTrue(state.over)
      assert.strictEqual((yield* Effect.flip(kept.next(id)))._tag, "Moved")
    }))

  it.effect("waits for a slow reader for as long as that takes, once it has begun", () =>
    Effect.gen(function*() {
      const kept = StreamedResponses.make()
      const { id, state } = yield* keep(kept, finite)
      assert.deepStrictEqual(yield* kept.next(id), [bytes(1)])
      yield* TestClock.adjust("10 minutes")
      assert.isFalse(state.over)
      assert.deepStrictEqual(yield* kept.next(id), [bytes(2)])
    }))

  it.effect("is over when its reader is interrupted while it waits, and when it is not wanted any more", () =>
    Effect.gen(function*() {
      const kept = StreamedResponses.make()
      const [waited, unwanted] = [yield* keep(kept, endless), yield* keep(kept, endless)]
      yield* kept.next(waited.id)
      const waiting = yield* Effect.forkChild(kept.next(waited.id), { startImmediately: true })
      yield* Fiber.interrupt(waiting)
      assert.isTrue(waited.state.over)
      yield* kept.next(unwanted.id)
      assert.isFalse(unwanted.state.over)
      yield* kept.abandon(unwanted.id)
      assert.isTrue(unwanted.state.over)
      yield* kept.abandon(unwanted.id)
    }))

  it.effect("is over when the connection is gone that asked for it, and no other one's is", () =>
    Effect.gen(function*() {
      const kept = StreamedResponses.make()
      const [one, other] = [yield* keep(kept, endless, 1), yield* keep(kept, endless, 2)]
      yield* Effect.forEach([one, other], ({ id }) => kept.next(id))
      yield* kept.disconnected(1)
      assert.deepStrictEqual([one.state.over, other.state.over], [true, false])
    }))

  it.effect("that breaks off fails its reader, and its request is over", () =>
    Effect.gen(function*() {
      const kept = StreamedResponses.make()
      const { id, state } = yield* keep(kept, Stream.concat(Stream.make(bytes(1)), Stream.fail("broken")))
      yield* kept.next(id)
      assert.isTrue(Exit.hasDies(yield* Effect.exit(kept.next(id))))
      assert.isTrue(state.over)
    }))
})
