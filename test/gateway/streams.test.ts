/** Event streams: delivery, resumption, heartbeats, and clients that stop reading or lose their streams. */
import { connect } from "node:net"
import { assert, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const backends = { counter: Kit.counter() }
const { origin, url } = await Serve.gateway({ backends, heartbeat: "50 millis", maxInFlight: 3 })
const clock = await StillClock.make()
const defaults = await Serve.gateway({ backends }, clock)
/** No request or silent client times out. */
const patience = { requestTimeout: "Infinity", stallTimeout: "Infinity", idleTimeToLive: "1 day" } as const
const patient = await Serve.gateway({ backends, ...patience }, clock)

const resume = (url: string, session: string, after: Kit.Event | undefined, headers = {}) =>
  Kit.listen(url, session, { ...headers, "last-event-id": after?.id ?? "" })

describe("streams of requests", () => {
  it("resume after the last event that arrived, each time they are cut, without duplicates", async () => {
    const session = await Kit.open(url)
    const events: Array<Kit.Event> = []
    for (const count of [2, 1, 3, 99]) {
      const [response] = await Promise.all([
        events.length === 0
          ? Kit.post(url, session, Kit.toolCall(1, "held", { count: 7 }))
          : resume(url, session, events.at(-1)),
        Kit.release(url, session, 1, 2)
      ])
      events.push(...await Serve.firstEvents(response, count))
    }
    const messages = events.map(({ data }) => JSON.parse(data))
    const seen = messages.map(({ params, result }) => params?.progress ?? result.content[0].text)
    assert.deepStrictEqual(seen, [1, 2, 3, 4, 5, 6, 7, "held"])
    assert.strictEqual(new Set(events.map(({ id }) => id)).size, 8)
  })

  for (const version of ["2025-06-18", "2025-11-25"]) {
    it(`resume in revision ${version} after their end with the missed events, or with 204 if there are none`, async () => {
      const session = await Kit.open(url)
      const headers = { "mcp-protocol-version": version }
      const response = await Kit.post(url, session, Kit.toolCall(1, "progress"), headers)
      const events = await Serve.firstEvents(response, Infinity)
      // Since 2025-11-25, a stream begins with an empty event, from which a client can resume.
      const start = version === "2025-11-25" ? [""] : []
      const methods = events.map(({ data }) => data && (JSON.parse(data).method ?? "answer"))
      assert.deepStrictEqual(methods, [...start, "notifications/progress", "answer"])
      const missed = await Serve.messagesOf(await resume(url, session, events[0], headers))
      assert.lengthOf(missed, events.length - 1)
      assert.strictEqual(missed.at(-1).id, 1)
      const spent = await resume(url, session, events.at(-1), headers)
      assert.deepStrictEqual([spent.status, await spent.text()], [204, ""])
      // As many events as the buffer holds replace those of the call.
      await Kit.toolText(url, session, "flood", { count: 1000 })
      // Its answer comes after the flood.
      await Kit.toolText(url, session, "count")
      assert.strictEqual((await resume(url, session, events[0], headers)).status, 204)
    })
  }

  it("end for the earlier of two clients that resume the same one", async () => {
    const { url } = defaults
    const session = await Kit.open(url)
    const [response] = await Promise.all([
      Kit.post(url, session, Kit.toolCall(1, "held", { count: 1 })),
      Kit.release(url, session, 1)
    ])
    const [first] = await Serve.firstEvents(response, 1)
    const earlier = await resume(url, session, first)
    const later = await resume(url, session, first)
    assert.deepStrictEqual(await Serve.messagesOf(earlier), [])
    await Kit.release(url, session, 1)
    assert.strictEqual((await Kit.answerOf(later)).id, 1)
  })

  it("deliver many times the messages that the buffer holds to a slow client, without loss", async () => {
    const session = await Kit.open(url)
    // The buffer holds 1,000.
    const count = 20_000
    const response = await Kit.post(url, session, Kit.toolCall(1, "burst", { count, size: 200 }))
    const messages = await Serve.messagesOf(response)
    assert.deepStrictEqual(
      messages.slice(0, -1).map(({ params }) => params.progress),
      Array.from({ length: count }, (_, i) => i + 1)
    )
    assert.isDefined(messages.at(-1).result)
  })

  it("deliver messages of 3 MB, as a JSON body does", async () => {
    const session = await Kit.open(url)
    const size = 3_000_000
    assert.lengthOf(await Kit.toolText(url, session, "big", { size }), size)
    const messages = await Serve.messagesOf(await Kit.post(url, session, Kit.toolCall(1, "burst", { count: 2, size })))
    assert.deepStrictEqual(messages.map(({ params }) => params?.message.length), [size, size, undefined])
  })
})

describe("GET streams", () => {
  it("begin with the newest waiting messages that belong to no request, each once", async () => {
    const { url } = await Serve.gateway({ backends, replayEvents: 3 })
    const session = await Kit.open(url)
    for (const [count, expected] of [[2, "1 2 "], [1, "1 "], [5, "3 4 5 "]] as const) {
      await Kit.toolText(url, session, "flood", { count })
      const events = await Serve.firstEvents(await Kit.listen(url, session), Math.min(count, 3))
      assert.strictEqual(events.map(({ data }) => JSON.parse(data).params.data).join(""), expected)
    }
  })

  it("replay nothing for an event id that the session has not sent", async () => {
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "flood", { count: 1 })
    const [first] = await Serve.firstEvents(await Kit.listen(url, session), 1)
    const [prefix] = first?.id?.split("-") ?? []
    const seen = new Set([first?.id])
    const foreign = ["1", "1-9", "1--1", "9-0", "1-x"].map((rest) => `${prefix}-${rest}`)
    for (const id of ["x", "q-1-1", ...foreign]) {
      const response = await resume(url, session, { id, data: "" })
      await Kit.toolText(url, session, "flood", { count: 1 })
      const [event] = await Serve.firstEvents(response, 1)
      assert.isFalse(seen.has(event?.id), id)
      seen.add(event?.id)
    }
  })

  it("deliver each message on one of them, have heartbeats, and are limited in number", async () => {
    const session = await Kit.open(url)
    const streams = await Promise.all([0, 1, 2].map(() => Kit.listen(url, session)))
    const come = streams.map(Serve.reading)
    await Kit.toolText(url, session, "flood", { count: 50 })
    const seen = () => come.flatMap(({ text }) => Serve.messagesIn(text)).map(({ params }) => parseInt(params.data))
    await Kit.eventually("all have come", () => seen().length >= 50)
    assert.deepStrictEqual(seen().toSorted((a, b) => a - b), Array.from({ length: 50 }, (_, i) => i + 1))
    // `maxInFlight` limits them too.
    assert.strictEqual((await Kit.listen(url, session)).status, 429)
    const haveHeartbeats = () => come.every(({ text }) => text.split(": \n\n").length > 3)
    await Kit.eventually("heartbeats while it is silent", haveHeartbeats)
  })
})

describe("requests of a session", () => {
  it("differ if their ids have different JSON types, and beyond maxInFlight they are refused with 429", async () => {
    const session = await Kit.open(url)
    const ids = [1, "1", 2]
    const running = ids.map((id) => Kit.post(url, session, Kit.toolCall(id, "held")))
    await Kit.eventually("three are running", async () => (await Kit.inFlight(origin)) === 3)
    const refused = await Kit.post(url, session, Kit.toolCall("more", "count"))
    assert.deepStrictEqual([refused.status, refused.headers.has("retry-after")], [429, true])
    for (const id of ids) await Kit.release(url, session, id)
    const answers = await Promise.all(running.map(async (response) => Kit.answerOf(await response)))
    assert.deepStrictEqual(answers.map(({ id }) => id), ids)
    // There is room for another one.
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
  })

  it("fail 5 minutes after the last progress, are cancelled at the process, and a late answer is ignored", async () => {
    const { url } = defaults
    const session = await Kit.open(url)
    const late = Kit.post(url, session, Kit.toolCall("mine", "late"))
    const call = Kit.post(url, session, Kit.toolCall(1, "held", { count: 3 }))
    await Kit.release(url, session, 1)
    const come = Serve.reading(await call)
    const last = () => Serve.messagesIn(come.text).at(-1)
    for (const progress of [2, 3]) {
      await clock.pass("4 minutes")
      await Kit.release(url, session, 1)
      await Kit.eventually("progress", () => last().params?.progress === progress)
    }
    const { error, id } = await Kit.answerOf(await late)
    assert.deepStrictEqual([id, error.code], ["mine", -32001])
    await clock.pass("301 seconds")
    await Kit.eventually("its time is over", () => last().error?.code === -32001)
    // The process answers `late` at the cancellation, so before it reports the cancellation.
    await Kit.notify(url, session, "notifications/report")
    const [heard] = await Serve.firstEvents(await Kit.listen(url, session), 1)
    assert.includeMembers(JSON.parse(heard?.data ?? "").params?.data, ["cancelled mine", "cancelled 1"])
  })
})

describe("sessions whose process does not read", () => {
  /** A session whose process is stopped and whose pipe is full. */
  const start = async () => {
    const { origin, url } = await Serve.gateway({ backends, closeGrace: "20 millis" })
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const is = (state: string) => Kit.eventually(state, async () => (await Kit.sessionOn(origin, pid))?.state === state)
    process.kill(pid, "SIGSTOP")
    const large = Serve.notification("large", { x: "x".repeat(1_000_000) })
    await Kit.post(url, session, large)
    await is("idle")
    return { url, session, pid, is, large }
  }

  it("end at DELETE while a message waits for the process, and are active until then", async () => {
    for (const inBatch of [false, true]) {
      const { is, large, pid, session, url } = await start()
      const late = Kit.post(url, session, inBatch ? `[${large}]` : large)
      await is("active")
      assert.strictEqual((await Serve.remove(url, session)).status, 204)
      assert.isFalse(Kit.alive(pid))
      assert.strictEqual((await Serve.remove(url, session)).status, 404)
      assert.strictEqual((await late).status, 202)
    }
  })

  it("deliver a message later, also if its client has disconnected", async () => {
    const { is, pid, session, url } = await start()
    const leave = Serve.leaving((signal) => Kit.post(url, session, Serve.notification("late"), {}, signal))
    await is("active")
    await leave()
    await is("idle")
    process.kill(pid, "SIGCONT")
    assert.include(await Kit.toolText(url, session, "heard"), "notifications/late")
  })
})

it("a client that stops reading is disconnected after stallTimeout, and its session lives on", async () => {
  const { origin, url } = await Serve.gateway({ backends, stallTimeout: "300 millis", heartbeat: "100 millis" })
  const session = await Kit.open(url)
  const socket = connect(Number(new URL(url).port), "127.0.0.1").on("error", () => undefined)
  socket.write(
    `GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\nMcp-Session-Id: ${session}\r\n\r\n`
  )
  await new Promise((resolve) => socket.once("data", resolve))
  socket.pause()
  const streams = async () => (await Serve.overview(origin)).sessions[0].streams
  assert.strictEqual(await streams(), 1)
  // More than the buffers of the kernel hold.
  await Kit.toolText(url, session, "flood", { count: 150, size: 100_000 })
  await Kit.eventually("the stream is gone", async () => (await streams()) === 0)
  assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
  socket.destroy()
})

const hasStreams = (origin: string, pid: number, count: number) =>
  Kit.eventually(`it has ${count} streams`, async () => (await Kit.sessionOn(origin, pid))?.streams === count)

it("a silent session ends after 30 minutes, or 15 minutes if its GET stream broke off and no message came since", async () => {
  const { origin, url } = defaults
  /** Opens a session whose GET stream breaks off. */
  const openAndLose = async () => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    await (await Kit.listen(url, session)).body?.cancel()
    await hasStreams(origin, pid, 0)
    return { session, pid }
  }
  const [pausing, posting, resuming] = [await Kit.open(url), await Kit.open(url), await Kit.open(url)]
  await Kit.post(url, posting, Serve.notification("initialized"))
  const [first] = await Serve.firstEvents(await Kit.post(url, resuming, Kit.toolCall(1, "progress")), 1)
  assert.include(await (await resume(url, resuming, first)).text(), "done")
  const [speaking, lost] = [await openAndLose(), await openAndLose()]
  await clock.pass("11 minutes")
  assert.strictEqual(await Kit.toolText(url, speaking.session, "count"), "1")
  await clock.pass("18 minutes")
  assert.strictEqual(await Serve.statusOf(url, lost.session, Kit.toolCall(1, "count")), 404)
  await Kit.eventually("the process of the lost one is gone", () => !Kit.alive(lost.pid))
  for (const session of [pausing, posting, resuming]) assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
  assert.strictEqual(await Kit.toolText(url, speaking.session, "count"), "2")
})

describe("a session with a running call that has lost its GET stream", () => {
  const { origin, url } = patient

  /** Starts a call that is answered with a stream, and opens a GET stream. */
  const startCall = async (size: number) => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const aborters = { call: new AbortController(), get: new AbortController() }
    const call = Kit.toolCall(1, "untilSignal", { size })
    const response = await Kit.post(url, session, call, {}, aborters.call.signal)
    await Kit.listen(url, session, {}, aborters.get.signal)
    const lose = async (stream: "call" | "get", left: number) => {
      aborters[stream].abort()
      await hasStreams(origin, pid, left)
    }
    const answer = async () => {
      process.kill(pid, "SIGUSR2")
      await Kit.eventually("it is answered", async () => (await Kit.sessionOn(origin, pid))?.inFlight === 0)
    }
    const isGoneIn15Minutes = async () => {
      await clock.pass("899 seconds")
      assert.isDefined(await Kit.sessionOn(origin, pid))
      await clock.pass("1 second")
      await Kit.eventually("it is gone", () => !Kit.alive(pid))
    }
    return { pid, response, lose, answer, isGoneIn15Minutes }
  }

  it("ends 15 minutes after the answer if the stream of the call is lost too, in any order", async () => {
    for (const [first, last] of [["call", "get"], ["get", "call"]] as const) {
      const { answer, isGoneIn15Minutes, lose } = await startCall(10)
      await lose(first, 1)
      await lose(last, 0)
      await clock.pass("1 hour")
      await answer()
      await isGoneIn15Minutes()
    }
  })

  it("ends 15 minutes after the client has read the answer on the stream of the call", async () => {
    // More than the buffers of the kernel hold.
    const { answer, isGoneIn15Minutes, lose, pid, response } = await startCall(12_000_000)
    await lose("get", 1)
    await answer()
    await clock.pass("1 hour")
    assert.include(await response.text(), "released")
    await hasStreams(origin, pid, 0)
    await isGoneIn15Minutes()
  })
})
