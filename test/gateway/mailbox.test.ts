/** The mailboxes of one connection: which events a reader gets, which are dropped, and when the back end has to wait. */
import { assert, describe, it } from "@effect/vitest"
import type { Cause } from "effect"
import { Effect, Fiber } from "effect"
import type { Reader } from "../../src/gateway/conversation/Mailbox.ts"
import { Mailboxes } from "../../src/gateway/conversation/Mailbox.ts"

/** Mailboxes of texts for at most 4 events and 100 characters. */
const resumable = () => new Mailboxes<string>({ maxEvents: 4, maxBytes: 100 }, ({ length }) => length, "p")
const passing = () => new Mailboxes<string>({ maxEvents: 4, maxBytes: 100 }, ({ length }) => length)

/** The values that a reader takes next. */
const taken = ({ take }: Reader<string>): Effect.Effect<ReadonlyArray<string>, Cause.Done> =>
  Effect.map(take, (events) => events.map(({ value }) => value))

const isOver = ({ take }: Reader<string>) => Effect.map(Effect.exit(take), ({ _tag }) => _tag === "Failure")

describe("mailboxes", () => {
  it.effect("keep every event that an open reader has yet to take, and drop others, the oldest first", () =>
    Effect.gen(function*() {
      const mailboxes = resumable()
      const [read, unread] = [mailboxes.open(), mailboxes.open()]
      const reader = mailboxes.read(read)
      for (let i = 0; i < 10; i++) {
        mailboxes.push(unread, `u${i}`)
        mailboxes.push(read, `r${i}`)
      }
      assert.deepStrictEqual(yield* taken(reader), Array.from({ length: 10 }, (_, i) => `r${i}`))
      mailboxes.push(unread, "last")
      assert.deepStrictEqual(yield* taken(mailboxes.read(unread)), ["last"])
    }))

  it.effect("are congested while readers are behind by half of the limit, and announce room after that", () =>
    Effect.gen(function*() {
      for (
        const catchUp of [(reader: Reader<string>) => reader.take, ({ close }: Reader<string>) => Effect.sync(close)]
      ) {
        const mailboxes = resumable()
        const mailbox = mailboxes.open()
        for (let i = 0; i < 3; i++) mailboxes.push(mailbox, "nobody reads this")
        assert.isFalse(mailboxes.congested())
        const reader = mailboxes.read(mailbox)
        assert.isTrue(mailboxes.congested())
        const waiting = yield* Effect.forkChild(mailboxes.room(), { startImmediately: true })
        assert.isUndefined(waiting.pollUnsafe())
        yield* catchUp(reader)
        yield* Fiber.join(waiting)
        assert.isFalse(mailboxes.congested())
      }
    }))

  it.effect("count the characters that a resuming reader has yet to take again", () =>
    Effect.gen(function*() {
      const mailboxes = resumable()
      const mailbox = mailboxes.open()
      mailboxes.push(mailbox, "x".repeat(60))
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

  it.effect("give the events to the newest reader, and end the earlier one at once", () =>
    Effect.gen(function*() {
      const mailboxes = passing()
      const mailbox = mailboxes.open()
      const earlier = mailboxes.read(mailbox)
      const waiting = yield* Effect.forkChild(isOver(earlier), { startImmediately: true })
      const newer = mailboxes.read(mailbox)
      assert.isTrue(yield* Fiber.join(waiting))
      mailboxes.push(mailbox, "event")
      earlier.close()
      assert.deepStrictEqual(yield* taken(newer), ["event"])
      assert.isTrue(earlier.isDone())
    }))

  it.effect("end a reader once it has taken all events, and wake it if it waits", () =>
    Effect.gen(function*() {
      const mailboxes = passing()
      const mailbox = mailboxes.open()
      const reader = mailboxes.read(mailbox)
      const waiting = yield* Effect.forkChild(isOver(reader), { startImmediately: true })
      mailboxes.end(mailbox)
      assert.isTrue(yield* Fiber.join(waiting))
      const other = mailboxes.open()
      mailboxes.push(other, "answer")
      mailboxes.end(other)
      const late = mailboxes.read(other)
      assert.deepStrictEqual(yield* taken(late), ["answer"])
      assert.isTrue(yield* isOver(late))
    }))

  it.effect("give a burst of events to a waiting reader at once", () =>
    Effect.gen(function*() {
      const mailboxes = passing()
      const mailbox = mailboxes.open()
      const waiting = yield* Effect.forkChild(taken(mailboxes.read(mailbox)), { startImmediately: true })
      for (const value of ["a", "b", "c"]) mailboxes.push(mailbox, value)
      assert.deepStrictEqual(yield* Fiber.join(waiting), ["a", "b", "c"])
    }))

  it.effect("resume after the event that an id names, from the oldest event that is held", () =>
    Effect.gen(function*() {
      const mailboxes = resumable()
      const mailbox = mailboxes.open()
      const first = mailboxes.read(mailbox)
      for (const value of ["1", "2", "3"]) mailboxes.push(mailbox, value)
      const ids = (yield* first.take).map(({ id }) => id)
      first.close()
      const from = (id: string) => {
        const place = mailboxes.find(id)
        return place === undefined ? Effect.succeed([]) : taken(mailboxes.read(place.mailbox, place.sequence))
      }
      assert.deepStrictEqual(yield* from(ids[0] ?? ""), ["2", "3"])
      for (const value of ["4", "5", "6"]) mailboxes.push(mailboxes.open(), value)
      assert.deepStrictEqual(yield* from(ids[0] ?? ""), ["3"])
      assert.isUndefined(mailboxes.find((ids[0] ?? "").replace("p", "other")))
    }))

  it.effect("forget an ended mailbox without events, and end readers that resume there", () =>
    Effect.gen(function*() {
      const mailboxes = resumable()
      const mailbox = mailboxes.open()
      const reader = mailboxes.read(mailbox)
      mailboxes.push(mailbox, "event")
      mailboxes.end(mailbox)
      yield* reader.take
      reader.close()
      mailboxes.discard(mailbox)
      const place = mailboxes.find(reader.start)
      assert.isTrue(place !== undefined && place.mailbox !== mailbox)
      if (place !== undefined) assert.isTrue(yield* isOver(mailboxes.read(place.mailbox, place.sequence)))
    }))
})
