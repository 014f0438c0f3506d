/** Mailboxes: cases that tests over HTTP cannot time. `backPressure.test.ts` and `streams.test.ts` test the rest. */
import { assert, describe, it } from "@effect/vitest"
import type { Cause } from "effect"
import { Effect, Fiber } from "effect"
import type { Reader } from "../../src/gateway/conversation/Mailbox.ts"
import { Mailboxes } from "../../src/gateway/conversation/Mailbox.ts"

/** Mailboxes of texts for at most 4 events and 100 characters. */
const resumable = () => new Mailboxes<string>({ maxEvents: 4, maxBytes: 100 }, "p")

/** The values that a reader takes next. */
const taken = ({ take }: Reader<string>): Effect.Effect<ReadonlyArray<string>, Cause.Done> =>
  Effect.map(take, (events) => events.map(({ value }) => value))

describe("mailboxes", () => {
  it.effect("count the characters that a resuming reader takes again as unread", () =>
    Effect.gen(function*() {
      const mailboxes = resumable()
      const mailbox = mailboxes.open()
      mailboxes.push(mailbox, "x".repeat(60), 60)
      const reader = mailboxes.read(mailbox)
      const { start } = reader
      yield* reader.take
      assert.isFalse(mailboxes.congested())
      const place = mailboxes.find(start)
      assert.isTrue(place !== undefined && place.mailbox === mailbox)
      const again = mailboxes.read(mailbox, place?.sequence)
      assert.isTrue(mailboxes.congested())
      assert.deepStrictEqual(yield* taken(again), ["x".repeat(60)])
      assert.isFalse(mailboxes.congested())
    }))

  it.effect("give a burst of events to a waiting reader at once", () =>
    Effect.gen(function*() {
      const mailboxes = resumable()
      const mailbox = mailboxes.open()
      const waiting = yield* Effect.forkChild(taken(mailboxes.read(mailbox)), { startImmediately: true })
      for (const value of ["a", "b", "c"]) mailboxes.push(mailbox, value, value.length)
      assert.deepStrictEqual(yield* Fiber.join(waiting), ["a", "b", "c"])
    }))

  it.effect("resume after the event with the id, or from the oldest event that they hold", () =>
    Effect.gen(function*() {
      const mailboxes = resumable()
      const mailbox = mailboxes.open()
      const first = mailboxes.read(mailbox)
      for (const value of ["1", "2", "3"]) mailboxes.push(mailbox, value, value.length)
      const ids = (yield* first.take).map(({ id }) => id)
      first.close()
      const from = (id: string) => {
        const place = mailboxes.find(id)
        return place === undefined ? Effect.succeed([]) : taken(mailboxes.read(place.mailbox, place.sequence))
      }
      assert.deepStrictEqual(yield* from(ids[0] ?? ""), ["2", "3"])
      for (const value of ["4", "5", "6"]) mailboxes.push(mailboxes.open(), value, value.length)
      assert.deepStrictEqual(yield* from(ids[0] ?? ""), ["3"])
      assert.isUndefined(mailboxes.find((ids[0] ?? "").replace("p", "other")))
    }))
})
