/** Back pressure: while a reader is slow, the gateway drops nothing for it, and the back end's own writes wait. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { statSync } from "node:fs"
import { join } from "node:path"
import type * as Bridge from "../../src/gateway/conversation/Bridge.ts"
import type { Reply } from "../../src/gateway/conversation/Exchange.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as ModernKit from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as Told from "../kit/gateway/told.ts"

/** Waits for room in a fiber, which must still wait after every other fiber ran. */
const waitForRoom = Effect.fnUntraced(function*(room: Effect.Effect<void>) {
  const waiting = yield* Effect.forkChild(room, { startImmediately: true })
  yield* Effect.yieldNow
  assert.isUndefined(waiting.pollUnsafe())
  return waiting
})

describe("back pressure of one session", () => {
  const open = Told.open(Told.patient(8, 1000))

  const streamOf = (reply: Reply) => reply._tag === "Events" ? reply : assert.fail("no stream")
  const readers = {
    "the stream of a request": Effect.fnUntraced(function*(bridge: Bridge.Bridge, server: Told.Server) {
      const { reply } = Told.request(bridge, 1)
      server.progress(1)(0)
      const reader = streamOf(yield* reply)
      assert.lengthOf(yield* reader.take, 1)
      return reader
    }),
    "a GET stream": Effect.fnUntraced(function*(bridge: Bridge.Bridge) {
      const listening = bridge.requests.listen(undefined)
      return streamOf(listening === "TooMany" ? assert.fail() : listening.reply)
    })
  }
  const cases = Object.entries(readers).flatMap(([name, read]) => [
    { name, read, left: "messages", size: 0, count: 5 },
    { name, read, left: "bytes", size: 300, count: 2 }
  ])

  it.effect.each(cases)(
    "a server waits while $name has half of the buffer's $left unread",
    ({ count, read, size }) =>
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
      })
  )

  it.effect("bounds the buffer of an unread stream while the reader of another stream is behind", () =>
    Effect.gen(function*() {
      const { bridge, server } = yield* open
      const [behind, unread] = [Told.request(bridge, 1), Told.request(bridge, 2)]
      server.progress(1)(0)
      const reader = streamOf(yield* behind.reply)
      for (let i = 1; i <= 100; i++) assert.isTrue(server.progress(2)(i))
      const kept = yield* streamOf(yield* unread.reply).take
      assert.deepStrictEqual(kept.map(({ text }) => JSON.parse(text).params.progress), [94, 95, 96, 97, 98, 99, 100])
      assert.lengthOf(yield* reader.take, 1)
    }))
})

describe("back pressure over HTTP", () => {
  const [count, size] = [600, 100_000]
  const clients = {
    legacy: async (url: string, args: Record<string, unknown>) =>
      Kit.post(url, await Kit.open(url), Kit.toolCall(1, "pour", args)),
    modern: (url: string, args: object) =>
      ModernKit.send(url, "tools/call", { name: "pour", arguments: args }, { meta: { progressToken: 1 } })
  }

  /** The unread response of a call, once its server's writes wait. */
  const stalled = async (send: (url: string, args: Record<string, unknown>) => Promise<Response>) => {
    const file = join(Serving.directory(), "written")
    const gateway = await Serving.gateway({ backends: { counter: Kit.counter() }, stallTimeout: "5 minutes" })
    // The body is unread, so its socket is paused.
    const response = await send(gateway.url, { count, size, file })
    const written = () => statSync(file, { throwIfNoEntry: false })?.size ?? 0
    await Kit.standstill(written)
    // Thirty megabytes are more than all the buffers on the way hold.
    assert.isAbove(written(), 0)
    assert.isBelow(written(), count / 2)
    return { response, written }
  }

  for (const [era, send] of Object.entries(clients)) {
    it(`a ${era} client that reads nothing blocks its server's writes, and later gets all messages in order`, async () => {
      const { response } = await stalled(send)
      const messages = await Serving.messagesOf(response)
      const seen = messages.map(({ params, result }) => params?.progress ?? result.content[0].text)
      assert.deepStrictEqual(seen, [...Array.from({ length: count }, (_, i) => i + 1), "poured"])
    })

    it(`a ${era} client that disconnects unblocks its server's writes`, async () => {
      const { response, written } = await stalled(send)
      await response.body?.cancel()
      await Kit.eventually("all is written", () => written() === count)
    })
  }
})
