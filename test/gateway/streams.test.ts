/** Event streams: each message on exactly one, resumed after a cut, alive while silent, given up when nobody reads. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Option, Schema } from "effect"
import { TestClock } from "effect/testing"
import { connect } from "node:net"
import type { Reader } from "../../src/gateway/conversation/EventStreams.ts"
import { EventStreams } from "../../src/gateway/conversation/EventStreams.ts"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"
import * as Told from "../kit/gateway/told.ts"
import { shortOrLong } from "../kit/long.ts"

describe("requests with streams", () => {
  let gateway: Kit.Running
  let url: string
  beforeAll(async () => {
    gateway = await Kit.start({
      backends: { counter: Kit.counter() },
      heartbeat: "50 millis",
      maxInFlight: 3
    })
    url = `${gateway.origin}/mcp`
  })
  afterAll(() => gateway.stop())

  it("a stream that is cut resumes after the last event that arrived, up to the answer, and nothing comes twice", async () => {
    const session = await Kit.open(url)
    const stop = new AbortController()
    const [response] = await Promise.all([
      fetch(url, {
        method: "POST",
        headers: { ...Kit.headers, "mcp-session-id": session },
        body: Kit.toolCall(1, "held", { count: 6 }),
        signal: stop.signal
      }),
      Kit.release(url, session, 1, 2)
    ])
    const events: Array<Kit.Event> = []
    await Kit.readEvents(response, (event) => {
      events.push(event)
      return events.length === 2
    })
    stop.abort()
    await Kit.release(url, session, 1, 5)
    const last = events.at(-1)?.id ?? ""
    await Kit.readEvents(await Kit.listen(url, session, { "last-event-id": last }), (event) => {
      events.push(event)
      return false
    })
    const messages = events.map(({ data }) => JSON.parse(data))
    assert.deepStrictEqual(
      messages.map(({ params, result }) => params?.progress ?? result.content[0].text),
      [1, 2, 3, 4, 5, 6, "held"]
    )
    assert.strictEqual(new Set(events.map(({ id }) => id)).size, 7)
  })

  it("from revision 2025-11-25 on a stream begins with an empty event, from which it can be resumed", async () => {
    const session = await Kit.open(url)
    const version = { "mcp-protocol-version": "2025-11-25" }
    const response = await Kit.post(url, session, Kit.toolCall(1, "progress"), version)
    const events: Array<Kit.Event> = []
    await Kit.readEvents(response, (event) => events.push(event) === 1)
    assert.strictEqual(events[0]?.data, "")
    const resumed: Array<string> = []
    const again = await Kit.listen(url, session, { ...version, "last-event-id": events[0]?.id ?? "" })
    await Kit.readEvents(again, ({ data }) => {
      if (data !== "") resumed.push(data)
      return false
    })
    assert.deepStrictEqual(resumed.map((data) => JSON.parse(data).method ?? "answer"), [
      "notifications/progress",
      "answer"
    ])
  })

  it("a finished stream is resumed with what was missed and closed; without anything missed it is 204, so that a client stops", async () => {
    for (const version of ["2025-06-18", "2025-11-25"]) {
      const session = await Kit.open(url)
      const headers = { "mcp-protocol-version": version }
      const ids: Array<string> = []
      await Kit.readEvents(await Kit.post(url, session, Kit.toolCall(1, "progress"), headers), ({ id }) => {
        ids.push(id ?? "")
        return false
      })
      const resume = (id: string | undefined) => Kit.listen(url, session, { ...headers, "last-event-id": id ?? "" })
      const missed = await resume(ids.at(-2))
      assert.strictEqual(missed.status, 200)
      assert.strictEqual((await Kit.answerOf(missed)).id, 1)
      const spent = await resume(ids.at(-1))
      assert.deepStrictEqual([spent.status, await spent.text()], [204, ""])
      // As much as is kept takes the place of the call's events.
      await Kit.toolText(url, session, "flood", { count: 1000 })
      // Its answer comes after the flood.
      await Kit.toolText(url, session, "count")
      assert.strictEqual((await resume(ids.at(-2))).status, 204)
    }
  })

  it("messages for nobody wait for the next GET stream, and come once", async () => {
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "flood", { count: 3 })
    const read = async (count: number) => {
      const stop = new AbortController()
      const data: Array<string> = []
      await Kit.readEvents(await Kit.listen(url, session, {}, stop.signal), (event) => data.push(event.data) === count)
      stop.abort()
      return data.map((text) => JSON.parse(text).params.data)
    }
    assert.deepStrictEqual(await read(3), ["1 ", "2 ", "3 "])
    await Kit.toolText(url, session, "flood", { count: 1 })
    assert.deepStrictEqual(await read(1), ["1 "])
  })

  it("of several GET streams each message comes on exactly one", async () => {
    const session = await Kit.open(url)
    const stop = new AbortController()
    const seen: Array<string> = []
    const streams = await Promise.all([0, 1, 2].map(() => Kit.listen(url, session, {}, stop.signal)))
    const reading = streams.map((stream) =>
      Kit.readEvents(stream, ({ data }) => {
        seen.push(JSON.parse(data).params.data)
        return false
      }).catch(() => undefined)
    )
    await Kit.toolText(url, session, "flood", { count: 50 })
    await Kit.eventually("all have come", () => seen.length >= 50)
    stop.abort()
    await Promise.all(reading)
    assert.deepStrictEqual(seen.toSorted(), Array.from({ length: 50 }, (_, i) => `${i + 1} `).toSorted())
  })

  it("a reader who is slow, but there, gets many times the messages that the buffer holds, none lost", async () => {
    const session = await Kit.open(url)
    // The buffer holds 1,000.
    const count = shortOrLong(4000, 20_000)
    const response = await Kit.post(url, session, Kit.toolCall(1, "burst", { count, size: 200 }))
    let expected = 1
    let answered = false
    await Kit.readEvents(response, ({ data }) => {
      const message = JSON.parse(data)
      if (message.result !== undefined) answered = true
      else assert.strictEqual(message.params.progress, expected++)
      return false
    })
    assert.deepStrictEqual([expected, answered], [count + 1, true])
  })

  it("an answer of 3 MB arrives whole, on JSON and on a stream", async () => {
    const session = await Kit.open(url)
    assert.lengthOf(await Kit.toolText(url, session, "big", { size: 3_000_000 }), 3_000_000)
    const response = await Kit.post(url, session, Kit.toolCall(1, "burst", { count: 2, size: 3_000_000 }))
    const lengths: Array<number> = []
    await Kit.readEvents(response, ({ data }) => lengths.push(data.length) < 0)
    assert.deepStrictEqual(lengths.map((size) => size > 3_000_000), [true, true, false])
  })

  it("more streams than a session may have are 429", async () => {
    const session = await Kit.open(url)
    const stop = new AbortController()
    const open = () => Kit.listen(url, session, {}, stop.signal)
    const statuses = [await open(), await open(), await open(), await open()].map(({ status }) => status)
    assert.deepStrictEqual(statuses, [200, 200, 200, 429])
    stop.abort()
  })

  it("a silent stream gets heartbeats", async () => {
    const session = await Kit.open(url)
    const stop = new AbortController()
    const response = await Kit.listen(url, session, {}, stop.signal)
    let comments = 0
    const decoder = new TextDecoder()
    for await (const chunk of response.body ?? []) {
      comments += decoder.decode(chunk).split(": \n\n").length - 1
      if (comments >= 3) break
    }
    stop.abort()
    assert.isAtLeast(comments, 3)
  })

  it("more requests at once than a session may have are 429, and the next one after an answer is taken", async () => {
    const session = await Kit.open(url)
    const running = [1, 2, 3].map((id) => Kit.post(url, session, Kit.toolCall(id, "held")))
    await Kit.eventually("three are running", async () => (await Kit.inFlight(gateway.origin)) === 3)
    const refused = await Kit.post(url, session, Kit.toolCall("more", "count"))
    await refused.text()
    assert.deepStrictEqual([refused.status, refused.headers.has("retry-after")], [429, true])
    for (const id of [1, 2, 3]) await Kit.release(url, session, id)
    await Promise.all(running.map(async (response) => (await response).text()))
    assert.match(await Kit.toolText(url, session, "count"), /^\d+$/)
  })

  it("a batch that waits gets heartbeats, before its first answer and after, and no event is cut by one", async () => {
    const session = await Kit.open(url)
    const body = `[${Kit.toolCall("silent", "held")},${Kit.toolCall("steps", "held", { count: 3 })}]`
    const response = await Kit.post(url, session, body)
    const decoder = new TextDecoder()
    let text = ""
    const heartbeatAfter = (words: string) => text.includes(words) && text.includes(": \n\n", text.indexOf(words))
    const steps = [
      { at: "", step: () => Kit.release(url, session, "silent") },
      { at: "\"id\":\"silent\"", step: () => Kit.release(url, session, "steps", 4) }
    ]
    for await (const chunk of response.body ?? []) {
      text += decoder.decode(chunk, { stream: true })
      const [next] = steps
      if (next !== undefined && heartbeatAfter(next.at)) {
        steps.shift()
        await next.step()
      }
    }
    const seen: Array<{ readonly id: unknown; readonly comments: number }> = []
    await Kit.readEvents(new Response(text), ({ data }, comments) => {
      seen.push({ id: JSON.parse(data).id, comments })
      return false
    })
    assert.sameMembers(seen.flatMap(({ id }) => id === undefined ? [] : [id]), ["silent", "steps"])
    assert.lengthOf(seen, 5)
    assert.isAbove(seen[0]?.comments ?? 0, 0)
    assert.isAbove(seen.at(-1)?.comments ?? 0, seen[0]?.comments ?? 0)
  })

  it("a batch of revision 2025-03-26 gets every answer, and its notifications arrive", async () => {
    const session = await Kit.open(url)
    const notification = "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}"
    const tricky =
      "{\"jsonrpc\":\"2.0\",\"id\":\"],\\\"[{\",\"method\":\"tools/call\",\"params\":{\"name\":\"raw\",\"n\":[1.0,{}]}}"
    const body = ` [ ${Kit.toolCall(1, "count")} , ${notification},${tricky}]`
    const response = await Kit.post(url, session, body)
    const answers: Array<{ id: unknown; result: { content: ReadonlyArray<{ text: string }> } }> = []
    await Kit.readEvents(response, ({ data }) => answers.push(JSON.parse(data)) < 0)
    assert.sameMembers(answers.map(({ id }) => id), [1, "],\"[{"])
    assert.strictEqual(answers.find(({ id }) => id !== 1)?.result.content[0]?.text, tricky)
    assert.include(await Kit.toolText(url, session, "heard"), "notifications/initialized")
    assert.strictEqual((await Kit.post(url, session, `[${notification}]`)).status, 202)
    const calls = Array.from({ length: 3 }, (_, i) => [Kit.toolCall(`h${i}`, "heard"), notification]).flat()
    const inOrder = await Kit.post(url, session, `[${calls.join()}]`)
    const answered: Array<unknown> = []
    await Kit.readEvents(inOrder, ({ data }) => {
      const { id, result } = JSON.parse(data)
      answered.push(id)
      // Two notifications came before this batch, and then one after each call.
      const heard: ReadonlyArray<string> = JSON.parse(result.content[0].text)
      assert.lengthOf(heard.filter((method) => method === "notifications/initialized"), 2 + Number(id.slice(1)))
      return false
    })
    assert.sameMembers(answered, ["h0", "h1", "h2"])
  })
})

describe("the time of a request", () => {
  it("a request over its time gets an error and the process a cancellation; its late answer goes nowhere", async () => {
    const clock = AheadClock.make()
    const gateway = await Kit.start({ backends: { counter: Kit.counter() }, requestTimeout: "1 hour" }, clock)
    const url = `${gateway.origin}/mcp`
    const session = await Kit.open(url)
    const answer = Kit.post(url, session, Kit.toolCall("mine", "late"))
    await Kit.eventually("the call runs", async () => (await Kit.inFlight(gateway.origin)) === 1)
    clock.pass("1 hour")
    const { error, id } = await (await answer).json()
    assert.deepStrictEqual([id, error.code], ["mine", -32001])
    // The process answers the call as soon as it hears of the cancellation, and so before it reports it.
    const stop = new AbortController()
    const listening = await Kit.listen(url, session, {}, stop.signal)
    await Kit.notify(url, session, "notifications/report")
    const data: Array<string> = []
    await Kit.readEvents(listening, (event) => data.push(event.data) === 1)
    stop.abort()
    assert.include(JSON.parse(data[0] ?? "").params?.data, "cancelled mine")
    await gateway.stop()
  })

  it.effect("progress starts the time of a request anew", () =>
    Effect.gen(function*() {
      const { requests, server } = yield* Told.requests({
        requestTimeout: Duration.seconds(10),
        streamAfter: Duration.infinity,
        streamLostTimeToLive: Duration.infinity,
        maxInFlight: 10,
        replay: { maxEvents: 10, maxBytes: 1000 }
      })
      const { reply } = Told.request(requests, 1)
      server.progress(1)(0)
      const first = yield* reply
      if (first._tag !== "Stream") return assert.fail("no stream")
      const reader = first.open()
      const taken = Effect.map(reader.take, (events) => events.map(({ text }) => JSON.parse(text)))
      yield* taken
      for (const progress of [1, 2, 3]) {
        yield* TestClock.adjust("9 seconds")
        server.progress(1)(progress)
        assert.deepStrictEqual((yield* taken).map(({ params }) => params?.progress), [progress])
      }
      yield* TestClock.adjust("11 seconds")
      assert.deepStrictEqual((yield* taken).map(({ error }) => error?.code), [-32001])
      assert.include(server.heard, "notifications/cancelled")
    }))
})

describe("a session whose process reads nothing", () => {
  it("ends at DELETE, whatever waits for its process", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() }, closeGrace: "20 millis" })
    const url = `${gateway.origin}/mcp`
    const large = JSON.stringify({
      jsonrpc: "2.0",
      method: "notifications/large",
      params: { x: "x".repeat(1_000_000) }
    })
    for (const waiting of [large, `[${large}]`]) {
      const session = await Kit.open(url)
      const pid = await Kit.pidOf(url, session)
      process.kill(pid, "SIGSTOP")
      // More than the pipe holds, so that the next waits.
      await Kit.post(url, session, large)
      const late = Kit.post(url, session, waiting)
      await Kit.eventually("it waits", async () => (await Kit.sessionOn(gateway.origin, pid))?.state === "active")
      const headers = { ...Kit.headers, "mcp-session-id": session }
      assert.strictEqual((await fetch(url, { method: "DELETE", headers })).status, 204)
      assert.isFalse(Kit.alive(pid))
      assert.strictEqual((await late).status, 202)
    }
    await gateway.stop()
  })
})

describe("a client that is no longer there", () => {
  it("one that stops reading without closing is cut off, and its session lives on", async () => {
    const gateway = await Kit.start({
      backends: { counter: Kit.counter() },
      stallTimeout: "300 millis",
      heartbeat: "100 millis"
    })
    const url = `${gateway.origin}/mcp`
    const session = await Kit.open(url)
    const socket = connect(Number(new URL(url).port), "127.0.0.1")
    socket.on("error", () => undefined)
    socket.write(
      `GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\nMcp-Session-Id: ${session}\r\n\r\n`
    )
    await new Promise((resolve) => socket.once("data", resolve))
    socket.pause()
    const streams = async () => {
      const { sessions } = await (await fetch(`${gateway.origin}/sessions`)).json()
      return sessions[0].streams
    }
    assert.strictEqual(await streams(), 1)
    // More than the buffers of the kernel hold.
    await Kit.toolText(url, session, "flood", { count: 150, size: 100_000 })
    await Kit.eventually("the stream is gone", async () => (await streams()) === 0)
    assert.match(await Kit.toolText(url, session, "count"), /^\d+$/)
    socket.destroy()
    await gateway.stop()
  })

  it("a session that had a stream, lost it and hears nothing is ended, process and all; a client without stream is not", async () => {
    const clock = AheadClock.make()
    const gateway = await Kit.start({
      backends: { counter: Kit.counter() },
      streamLostTimeToLive: "1 hour",
      idleTimeToLive: "1 day"
    }, clock)
    const url = `${gateway.origin}/mcp`
    const [posting, lost] = [await Kit.open(url), await Kit.open(url)]
    const [other, pid] = [await Kit.pidOf(url, posting), await Kit.pidOf(url, lost)]
    const stop = new AbortController()
    await Kit.listen(url, lost, {}, stop.signal)
    stop.abort()
    await Kit.eventually("its stream is gone", async () => (await Kit.sessionOn(gateway.origin, pid))?.state === "idle")
    clock.pass("1 hour")
    await Kit.eventually("its process is gone", () => !Kit.alive(pid))
    assert.strictEqual((await Kit.post(url, lost, Kit.toolCall(1, "count"))).status, 404)
    assert.isTrue(Kit.alive(other))
    assert.strictEqual(await Kit.toolText(url, posting, "count"), "1")
    await gateway.stop()
  })

  it("has sent what it sent, also where the process reads nothing until it has gone", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() } })
    const url = `${gateway.origin}/mcp`
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const is = (state: string) =>
      Kit.eventually(
        `the session is ${state}`,
        async () => (await Kit.sessionOn(gateway.origin, pid))?.state === state
      )
    const notification = (method: string, size = 0) =>
      JSON.stringify({ jsonrpc: "2.0", method: `notifications/${method}`, params: { size: "x".repeat(size) } })
    process.kill(pid, "SIGSTOP")
    // More than the pipe holds.
    assert.strictEqual((await Kit.post(url, session, notification("large", 1_000_000))).status, 202)
    await is("idle")
    const stop = new AbortController()
    const late = fetch(url, {
      method: "POST",
      headers: { ...Kit.headers, "mcp-session-id": session },
      body: notification("late"),
      signal: stop.signal
    }).then(({ status }) => `answered ${status}`, () => "gone")
    await is("active")
    stop.abort()
    assert.strictEqual(await late, "gone")
    await is("idle")
    process.kill(pid, "SIGCONT")
    assert.include(await Kit.toolText(url, session, "heard"), "notifications/late")
    await gateway.stop()
  })

  describe("that lost its streams while it waited for a long answer", () => {
    /** A request whose answer is a stream already, beside a GET stream. */
    const start = Effect.gen(function*() {
      const { requests, server } = yield* Told.requests({
        requestTimeout: Duration.infinity,
        streamAfter: Duration.infinity,
        streamLostTimeToLive: Duration.minutes(2),
        maxInFlight: 10,
        replay: { maxEvents: 10, maxBytes: 1000 }
      })
      const listening = Option.getOrThrow(requests.listen(undefined))
      const { reply } = Told.request(requests, 1)
      server.progress(1)(1)
      const first = yield* reply
      if (first._tag !== "Stream") return assert.fail("no stream")
      const answering = first.open()
      const answered = Effect.sync(() => {
        server.say({ id: 1, result: {} })
        assert.strictEqual(requests.activity().inFlight, 0)
      })
      return { listening, answering, answered, ended: server.transport.ended }
    })
    /** It is taken for gone when two minutes of silence are over, and not a second earlier. */
    const isGoneInTwoMinutes = Effect.fnUntraced(function*(ended: Told.Server["transport"]["ended"]) {
      yield* TestClock.adjust("119 seconds")
      assert.isFalse(Deferred.isDoneUnsafe(ended))
      yield* TestClock.adjust("1 second")
      assert.isTrue(Deferred.isDoneUnsafe(ended))
      const { message } = yield* Deferred.await(ended)
      assert.include(message, "the client's GET stream broke off, and the client sent nothing for 2m")
    })

    for (const first of ["answering", "listening"] as const) {
      it.effect(`is not taken for gone when that comes, but when it is silent from then on (${first} broke first)`, () =>
        Effect.gen(function*() {
          const { answered, answering, ended, listening } = yield* start
          for (const reader of first === "answering" ? [answering, listening] : [listening, answering]) reader.close()
          yield* TestClock.adjust("10 minutes")
          yield* answered
          yield* isGoneInTwoMinutes(ended)
        }))
    }

    it.effect("is silent only from when it has read to the end what it still reads", () =>
      Effect.gen(function*() {
        const { answered, answering, ended, listening } = yield* start
        listening.close()
        yield* answered
        yield* TestClock.adjust("10 minutes")
        answering.close()
        yield* isGoneInTwoMinutes(ended)
      }))
  })
})

describe("a silent client, with the default settings,", () => {
  let clock: StillClock.StillClock
  let gateway: Kit.Running
  let url: string
  beforeAll(async () => {
    clock = await StillClock.make()
    gateway = await Kit.start({ backends: { counter: Kit.counter() } }, clock)
    url = `${gateway.origin}/mcp`
  })
  afterAll(() => clock.passUntilSettled("the gateway has stopped", gateway.stop()))

  /** A session whose client had a GET stream, which broke off. */
  const openAndLose = async () => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const stop = new AbortController()
    await Kit.listen(url, session, {}, stop.signal)
    stop.abort()
    await Kit.eventually("the gateway has noticed", async () => {
      const { sessions } = await (await fetch(`${gateway.origin}/sessions`)).json()
      return sessions.some((each: { readonly pid: number; readonly streams: number }) =>
        each.pid === pid && each.streams === 0
      )
    })
    return { session, pid }
  }

  /** A session of which a client has resumed the stream of a call, and read it to the end. */
  const openAndResume = async () => {
    const session = await Kit.open(url)
    const response = await Kit.post(url, session, Kit.toolCall("resumed", "progress"))
    let first = ""
    await Kit.readEvents(response, ({ id }) => {
      first = id ?? ""
      return true
    })
    const rest = await (await Kit.listen(url, session, { "last-event-id": first })).text()
    assert.include(rest, "done")
    return session
  }

  it("has the idle time of 30 minutes, unless its GET stream broke off and it has not spoken since", async () => {
    const pausing = await Kit.open(url)
    const posting = await Kit.open(url)
    await Kit.post(url, posting, "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}")
    const resuming = await openAndResume()
    const speaking = await openAndLose()
    assert.strictEqual(await Kit.toolText(url, speaking.session, "count"), "1")
    const lost = await openAndLose()
    await clock.pass("29 minutes")
    assert.strictEqual((await Kit.post(url, lost.session, Kit.toolCall(1, "count"))).status, 404)
    await Kit.eventually("the process of the lost one is gone", () => !Kit.alive(lost.pid))
    assert.strictEqual(await Kit.toolText(url, pausing, "count"), "1")
    assert.strictEqual(await Kit.toolText(url, posting, "count"), "1")
    assert.strictEqual(await Kit.toolText(url, resuming, "count"), "1")
    assert.strictEqual(await Kit.toolText(url, speaking.session, "count"), "2")
  })

  it("finds its session when its connection broke off ten minutes ago", async () => {
    const { session } = await openAndLose()
    await clock.pass("11 minutes")
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
  })
})

describe("the buffer", () => {
  it("keeps no more than its limits, drops the oldest first, and resumes with what there is", () => {
    const streams = new EventStreams({ maxEvents: 3, maxBytes: 1000 }, "p")
    const stream = streams.open()
    for (const text of ["a", "b", "c", "d", "e"]) streams.push(stream, text)
    const reader = streams.read(stream, 0)
    assert.deepStrictEqual(Effect.runSync(reader.take).map(({ text }) => text), ["c", "d", "e"])
  })

  it("knows only its own event ids", () => {
    const streams = new EventStreams({ maxEvents: 3, maxBytes: 1000 }, "p")
    const stream = streams.open()
    streams.push(stream, "a")
    for (const id of ["", "p-1", "p-1-2", "p-1--1", "p-2-0", "q-1-1", "p-1-x", "p-NaN-1"]) {
      assert.deepStrictEqual([id, streams.find(id)], [id, undefined])
    }
    assert.strictEqual(streams.find("p-1-1")?.sequence, 1)
  })

  it("a newer reader of a stream ends the older one", async () => {
    const streams = new EventStreams({ maxEvents: 3, maxBytes: 1000 }, "p")
    const stream = streams.open()
    const older = streams.read(stream)
    const waiting = Effect.runPromiseExit(older.take)
    const newer = streams.read(stream)
    assert.strictEqual((await waiting)._tag, "Failure")
    streams.push(stream, "a")
    older.close()
    assert.deepStrictEqual(Effect.runSync(newer.take).map(({ text }) => text), ["a"])
    assert.strictEqual(streams.readers(), 1)
  })

  it("calls who waits for room only while there is some, each once, the first first", () => {
    const streams = new EventStreams({ maxEvents: 4, maxBytes: 1000 }, "p")
    const stream = streams.open()
    const reader = streams.read(stream)
    const called: Array<string> = []
    const fill = () => {
      while (!streams.congested()) streams.push(stream, "x")
    }
    fill()
    /** Fills what room there is, and waits again. */
    const greedy = (name: string): Effect.Effect<void> =>
      Effect.suspend(() => {
        called.push(name)
        fill()
        return called.length < 20 ? Effect.andThen(streams.room, greedy(name)) : Effect.void
      })
    Effect.runFork(Effect.andThen(streams.room, greedy("a")))
    Effect.runFork(Effect.andThen(streams.room, greedy("b")))
    for (let i = 0; i < 4; i++) Effect.runSync(reader.take)
    assert.deepStrictEqual(called, ["a", "b", "a", "b"])
  })

  const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))
  const Command = Schema.Struct({
    type: Schema.Literals(["push", "push", "read", "take", "close"]),
    stream: between(0, 2),
    size: between(0, 30)
  })

  it.prop(
    "whatever is pushed, read, dropped and resumed: each stream's events come in order, each once, none lost to a reader",
    [Schema.Array(Command)],
    ([commands]) => {
      const streams = new EventStreams({ maxEvents: 5, maxBytes: 60 }, "p")
      const all = [0, 1, 2].map(() => ({
        stream: streams.open(),
        pushed: 0,
        seen: 0,
        reader: undefined as Reader | undefined
      }))
      for (const { size, stream, type } of commands) {
        const model = all[stream]
        if (model === undefined) continue
        if (type === "push" && !streams.congested()) {
          streams.push(model.stream, `${++model.pushed}:${"x".repeat(size)}`)
        } else if (type === "read") {
          model.reader = streams.read(model.stream)
          // What was dropped while nobody read is lost; from here on nothing may be.
          model.seen = model.stream.delivered
        } else if (type === "take" && model.reader !== undefined && model.seen < model.pushed) {
          for (const { text } of Effect.runSync(model.reader.take)) {
            assert.strictEqual(Number(text.split(":")[0]), ++model.seen)
          }
        } else if (type === "close") {
          model.reader?.close()
          model.reader = undefined
        }
      }
      for (const model of all) {
        while (model.reader !== undefined && model.seen < model.pushed) {
          for (const { text } of Effect.runSync(model.reader.take)) {
            assert.strictEqual(Number(text.split(":")[0]), ++model.seen)
          }
        }
      }
    },
    { arbitrary: { runs: 500, size: 100 } }
  )
})
