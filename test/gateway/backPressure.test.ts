/** While a reader is there nothing is dropped for it: the back end waits, of either era and up to its own writes. */
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Fiber } from "effect"
import { statSync } from "node:fs"
import { join } from "node:path"
import type * as Bridge from "../../src/gateway/conversation/Bridge.ts"
import type { Reply } from "../../src/gateway/conversation/Exchange.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as ModernKit from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as Told from "../kit/gateway/told.ts"
import { shortOrLong } from "../kit/long.ts"

/** A wait for room that is still one after everybody had a turn. */
const waitForRoom = Effect.fnUntraced(function*(room: Effect.Effect<void>) {
  const waiting = yield* Effect.forkChild(room, { startImmediately: true })
  yield* Effect.yieldNow
  assert.isUndefined(waiting.pollUnsafe())
  return waiting
})

describe("a legacy session's server", () => {
  const open = Told.open({
    requestTimeout: Duration.infinity,
    streamAfter: Duration.infinity,
    streamLostTimeToLive: Duration.infinity,
    maxInFlight: 10,
    replay: { maxEvents: 8, maxBytes: 1000 }
  })

  const streamOf = (reply: Effect.Effect<Reply>) =>
    Effect.map(reply, (first) => first._tag === "Events" ? first : assert.fail("no stream"))
  /** The readers that a client can be. */
  const readers = {
    "the stream of a request": Effect.fnUntraced(function*(bridge: Bridge.Bridge, server: Told.Server) {
      const { reply } = Told.request(bridge, 1)
      server.progress(1)(0)
      const reader = yield* streamOf(reply)
      assert.lengthOf(yield* reader.take, 1)
      return reader
    }),
    "a GET stream": (bridge: Bridge.Bridge) =>
      streamOf(
        Effect.map(bridge.listen(undefined), (listening) => listening === "TooMany" ? assert.fail() : listening.reply)
      )
  }
  const cases = Object.entries(readers).flatMap(([name, read]) => [
    { name, read, left: "messages", size: 0, count: 5 },
    { name, read, left: "bytes", size: 300, count: 2 }
  ])

  it.effect.each(cases)("waits once the reader of $name has left half of the buffer's $left, until it has taken them", (
    { count, read, size }
  ) =>
    Effect.gen(function*() {
      const { bridge, server } = yield* open
      const reader = yield* read(bridge, server)
      const steps = Array.from({ length: count }, (_, i) => i + 1)
      assert.deepStrictEqual(steps.map(server.progress(1, size)), steps.map((step) => step < count))
      const waiting = yield* waitForRoom(server.room)
      const taken = yield* reader.take
      assert.deepStrictEqual(taken.map(({ text }) => JSON.parse(text).params.progress), steps)
      yield* Fiber.join(waiting)
      assert.isTrue(server.progress(1, size)(6))
    }))

  it.effect("fills no memory with what nobody reads while a reader is behind on another stream", () =>
    Effect.gen(function*() {
      const { bridge, server } = yield* open
      const [behind, unread] = [Told.request(bridge, 1), Told.request(bridge, 2)]
      server.progress(1)(0)
      const reader = yield* streamOf(behind.reply)
      for (let i = 1; i <= 100; i++) assert.isTrue(server.progress(2)(i))
      const kept = yield* Effect.flatMap(streamOf(unread.reply), ({ take }) => take)
      assert.deepStrictEqual(kept.map(({ text }) => JSON.parse(text).params.progress), [94, 95, 96, 97, 98, 99, 100])
      assert.lengthOf(yield* reader.take, 1)
    }))
})

describe("a client that reads nothing for a while", () => {
  const [count, size] = [shortOrLong(300, 1000), 100_000]
  const clients = {
    legacy: async (url: string, args: Record<string, unknown>) =>
      Kit.post(url, await Kit.open(url), Kit.toolCall(1, "pour", args)),
    modern: (url: string, args: object) =>
      ModernKit.send(url, "tools/call", { name: "pour", arguments: args }, { meta: { progressToken: 1 } })
  }

  /** The response that a client does not read, once its server waits. */
  const stalled = async (send: (url: string, args: Record<string, unknown>) => Promise<Response>) => {
    const file = join(Serving.directory(), "written")
    const gateway = await Serving.gateway({ backends: { counter: Kit.counter() }, stallTimeout: "5 minutes" })
    // A body that nobody reads: its socket is paused.
    const response = await send(gateway.url, { count, size, file })
    const written = () => statSync(file, { throwIfNoEntry: false })?.size ?? 0
    await Kit.standstill(written)
    // Thirty megabytes are more than all the buffers on the way hold.
    assert.isAbove(written(), 0)
    assert.isBelow(written(), count / 2)
    return { response, written }
  }

  for (const [era, send] of Object.entries(clients)) {
    it(`holds a ${era} server up in its writes, and gets all of it in order when it goes on`, async () => {
      const { response } = await stalled(send)
      const seen: Array<number | string> = []
      await Kit.readEvents(response, ({ data }) => {
        const { params, result } = JSON.parse(data)
        seen.push(params?.progress ?? result.content[0].text)
        return false
      })
      assert.deepStrictEqual(seen, [...Array.from({ length: count }, (_, i) => i + 1), "poured"])
    })

    it(`lets a ${era} server write on when it goes`, async () => {
      const { response, written } = await stalled(send)
      await response.body?.cancel()
      await Kit.eventually("all is written", () => written() === count)
    })
  }
})
