/** While a reader is there nothing is dropped for it: the back end waits, of either era and up to its own writes. */
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Fiber, Option } from "effect"
import { mkdtempSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type * as Bridge from "../../src/gateway/conversation/Bridge.ts"
import * as Lane from "../../src/gateway/conversation/Lane.ts"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import type * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as ModernKit from "../kit/gateway/modern.ts"
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

  /** The readers that a client can be, once somebody reads. */
  const readers = {
    "the stream of a request": (bridge: Bridge.Bridge, server: Told.Server) =>
      Effect.gen(function*() {
        const { reply } = Told.request(bridge, 1)
        server.progress(1)(0)
        const first = yield* reply
        if (first._tag !== "Stream") return assert.fail("no stream")
        const reader = first.open()
        assert.lengthOf(yield* reader.take, 1)
        return reader
      }),
    "a GET stream": (bridge: Bridge.Bridge) => Effect.map(bridge.listen(undefined), Option.getOrThrow)
  }

  for (const [name, read] of Object.entries(readers)) {
    it.effect(`waits once the reader of ${name} has left half of the buffer's messages, and goes on when it has taken them`, () =>
      Effect.gen(function*() {
        const { bridge, server } = yield* open
        const reader = yield* read(bridge, server)
        const said = [1, 2, 3, 4, 5].map(server.progress(1))
        assert.deepStrictEqual(said, [true, true, true, true, false])
        const waiting = yield* waitForRoom(server.room)
        const taken = yield* reader.take
        assert.deepStrictEqual(taken.map(({ text }) => JSON.parse(text).params.progress), [1, 2, 3, 4, 5])
        yield* Fiber.join(waiting)
        assert.isTrue(server.progress(1)(6))
      }))
  }

  it.effect("waits once a reader has left half of the buffer's bytes", () =>
    Effect.gen(function*() {
      const { bridge, server } = yield* open
      const reader = yield* readers["a GET stream"](bridge)
      assert.deepStrictEqual([1, 2].map(server.progress(1, 300)), [true, false])
      const waiting = yield* waitForRoom(server.room)
      assert.lengthOf(yield* reader.take, 2)
      yield* Fiber.join(waiting)
    }))

  it.effect("fills no memory with what nobody reads while a reader is behind on another stream", () =>
    Effect.gen(function*() {
      const { bridge, server } = yield* open
      const [behind, unread] = [Told.request(bridge, 1), Told.request(bridge, 2)]
      server.progress(1)(0)
      const first = yield* behind.reply
      if (first._tag !== "Stream") return assert.fail("no stream")
      const reader = first.open()
      for (let i = 1; i <= 100; i++) assert.isTrue(server.progress(2)(i))
      const second = yield* unread.reply
      if (second._tag !== "Stream") return assert.fail("no stream")
      const kept = yield* second.open().take
      assert.deepStrictEqual(kept.map(({ text }) => JSON.parse(text).params.progress), [94, 95, 96, 97, 98, 99, 100])
      assert.lengthOf(yield* reader.take, 1)
    }))

  it.effect("goes on when the reader that it waits for has gone, and waits for nobody while there is none", () =>
    Effect.gen(function*() {
      const { bridge, server } = yield* open
      const reader = yield* readers["a GET stream"](bridge)
      assert.isFalse([1, 2, 3, 4, 5].map(server.progress(1)).at(-1))
      const waiting = yield* waitForRoom(server.room)
      reader.close()
      yield* Fiber.join(waiting)
      assert.notInclude(Array.from({ length: 100 }, (_, i) => i).map(server.progress(1)), false)
    }))
})

describe("the server of a modern caller's lane", () => {
  const client: Modern.Client = {
    info: undefined,
    name: undefined,
    capabilities: { roots: false, sampling: undefined, elicitation: undefined, extensions: undefined }
  }
  const open = Effect.gen(function*() {
    const server = Told.make()
    const lane = yield* Lane.make(Effect.succeed(server.transport), {
      client,
      era: "legacy",
      probeTimeout: 1000,
      limits: { maxEvents: 4, maxBytes: 1000 },
      changed: () => {},
      asks: { asked: false },
      paramHeaders: new Map()
    }, Told.metrics)
    return { lane, server }
  })
  /** The first call of a lane, which its server knows by the number after that of `initialize`. */
  const number = 2
  const call = ({ call }: Lane.Lane) => {
    const text = Kit.toolCall("mine", "x")
    const request = JsonRpc.read(text)
    if (request?._tag !== "Request") return assert.fail("no request")
    return call(
      {
        request,
        id: "\"mine\"",
        params: JSON.stringify(request.params),
        progressToken: "\"mine\"",
        client,
        logLevel: undefined,
        requestState: undefined,
        inputResponses: undefined
      },
      false,
      Effect.void
    )
  }

  it.effect("waits once a call's client has left more messages than are kept, and goes on when it has taken them", () =>
    Effect.gen(function*() {
      const { lane, server } = yield* open
      const { take } = call(lane)
      const said = [1, 2, 3, 4, 5].map(server.progress(number))
      assert.deepStrictEqual(said, [true, true, true, true, false])
      const waiting = yield* waitForRoom(server.room)
      const taken = yield* take
      const progress = taken.map((event) => event._tag === "Notification" && JSON.parse(event.text).params.progress)
      assert.deepStrictEqual(progress, [1, 2, 3, 4, 5])
      yield* Fiber.join(waiting)
      assert.isTrue(server.progress(number)(6))
    }))

  it.effect("waits once a call's client has left more bytes than are kept", () =>
    Effect.gen(function*() {
      const { lane, server } = yield* open
      const { take } = call(lane)
      assert.deepStrictEqual([1, 2].map(server.progress(number, 600)), [true, false])
      const waiting = yield* waitForRoom(server.room)
      assert.lengthOf(yield* take, 2)
      yield* Fiber.join(waiting)
    }))

  it.effect("goes on when the call that it waits for is over", () =>
    Effect.gen(function*() {
      const { lane, server } = yield* open
      const { cancel } = call(lane)
      assert.isFalse([1, 2, 3, 4, 5].map(server.progress(number)).at(-1))
      const waiting = yield* waitForRoom(server.room)
      cancel("enough")
      yield* Fiber.join(waiting)
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

  for (const [era, send] of Object.entries(clients)) {
    it(`holds a ${era} server up in its writes, and gets all of it in order when it goes on`, async () => {
      const folder = mkdtempSync(join(tmpdir(), "back-pressure-"))
      const file = join(folder, "written")
      const gateway = await Kit.start({ backends: { counter: Kit.counter() }, stallTimeout: "5 minutes" })
      // A body that nobody reads: its socket is paused.
      const response = await send(`${gateway.origin}/mcp`, { count, size, file })
      const written = () => statSync(file, { throwIfNoEntry: false })?.size ?? 0
      await Kit.standstill(written)
      // Thirty megabytes are more than all the buffers on the way hold.
      assert.isAbove(written(), 0)
      assert.isBelow(written(), count / 2)
      const seen: Array<number | string> = []
      await Kit.readEvents(response, ({ data }) => {
        const { params, result } = JSON.parse(data)
        seen.push(params?.progress ?? result.content[0].text)
        return false
      })
      assert.deepStrictEqual(seen, [...Array.from({ length: count }, (_, i) => i + 1), "poured"])
      await gateway.stop()
      rmSync(folder, { recursive: true })
    })
  }
})
