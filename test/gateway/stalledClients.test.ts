/** Clients that do not read their event stream. */
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Logger, Stream } from "effect"
import { TestClock } from "effect/testing"
import * as EventStreamBody from "../../src/gateway/fronts/EventStreamBody.ts"

describe("stallTimeout", () => {
  const times = { stallTimeout: Duration.seconds(30), heartbeat: Duration.hours(1) }
  /** A body whose chunk is unread since the start, and whether its client has been disconnected. */
  const unread = (disconnect: Effect.Effect<void> = Effect.void, expiresAt = Infinity) => {
    const state = { disconnected: false }
    const open: EventStreamBody.OpenBody = {
      disconnect: Effect.andThen(Effect.sync(() => (state.disconnected = true)), disconnect),
      expiresAt,
      since: 0,
      resume: undefined
    }
    return { open, state }
  }

  it.effect("disconnects the other stalled clients after a disconnect that dies", () =>
    Effect.gen(function*() {
      const clients = [unread(Effect.die("cannot be disconnected")), unread()]
      const bodies = new Set(clients.map(({ open }) => open))
      yield* Effect.forkChild(EventStreamBody.watch(bodies, times))
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual(clients.map(({ state }) => state.disconnected), [true, true])
      const later = unread()
      bodies.add(later.open)
      yield* TestClock.adjust("15 seconds")
      assert.isTrue(later.state.disconnected)
    }).pipe(Effect.provide(Logger.layer([]))))

  it.effect("does not wait for a client whose credentials have expired", () =>
    Effect.gen(function*() {
      const { open, state } = unread(Effect.void, 10_000)
      yield* Effect.forkChild(EventStreamBody.watch(new Set([open]), times))
      yield* TestClock.adjust("9 seconds")
      assert.isFalse(state.disconnected)
      yield* TestClock.adjust("6 seconds")
      assert.isTrue(state.disconnected)
    }))

  it.effect("disconnects a client that reads only the first heartbeat, after 1 to 1.5 times stallTimeout", () =>
    Effect.gen(function*() {
      const bodies = new Set<EventStreamBody.OpenBody>()
      const { open: { disconnect }, state } = unread()
      yield* Effect.forkChild(EventStreamBody.watch(bodies, times))
      const stream = EventStreamBody.silence(Effect.never, { bodies, disconnect, expiresAt: Infinity })
      const pull = yield* Stream.toPull(stream)
      yield* TestClock.adjust("7 seconds")
      assert.strictEqual(new TextDecoder().decode((yield* pull)[0]), ": \n\n")
      yield* TestClock.adjust("29 seconds")
      assert.isFalse(state.disconnected)
      yield* TestClock.adjust("16 seconds")
      assert.isTrue(state.disconnected)
    }))
})
