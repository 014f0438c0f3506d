/** Batches of revision 2025-03-26. */
import { assert, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"

const options = { backends: { counter: Kit.counter() }, maxInFlight: 3 }
const { origin, url } = await Serve.gateway(options)
const note = Serve.notification("initialized")
const calls = (...ids: ReadonlyArray<number>) => ids.map((id) => Kit.toolCall(id, "held", { count: 99 }))
const short = (id: number) => Kit.toolCall(id, "held")

const send = (session: string, messages: ReadonlyArray<string>, signal?: AbortSignal) =>
  Kit.post(url, session, `[${messages.join()}]`, {}, signal)
const release = async (session: string, ...ids: ReadonlyArray<string | number>) => {
  for (const id of ids) await Kit.release(url, session, id)
}
const answered = (messages: ReadonlyArray<{ readonly id: unknown }>) => messages.map(({ id }) => id)

describe("batches", () => {
  it("a batch gets every answer, and its notifications reach the server in order", async () => {
    const session = await Kit.open(url)
    const id = "],\"[{"
    const params = "{\"name\":\"raw\",\"n\":[12345678901234567890,{}]}"
    const tricky = `{"jsonrpc":"2.0","id":${JSON.stringify(id)},"method":"tools/call","params":${params}}`
    const answers = await Serve.messagesOf(await send(session, [` ${Kit.toolCall(1, "count")} `, note, tricky]))
    assert.sameMembers(answered(answers), [1, id])
    assert.strictEqual(answers.find((answer) => answer.id === id).result.content[0].text, tricky)
    assert.strictEqual((await send(session, [note])).status, 202)
    const inOrder = await send(session, [2, 3, 4].flatMap((id) => [Kit.toolCall(id, "heard"), note]))
    // Two notifications came before this batch, and then one after each call.
    for (const { id, result } of await Serve.messagesOf(inOrder)) {
      assert.lengthOf(JSON.parse(result.content[0].text).filter((method: string) => /initialized/.test(method)), id)
    }
  })

  it("a waiting batch gets heartbeats before and after its first answer, and none cuts an event", async () => {
    const { url } = await Serve.gateway({ ...options, heartbeat: "50 millis" })
    const session = await Kit.open(url)
    const body = `[${short(1)},${Kit.toolCall(2, "held", { count: 3 })}]`
    const come = Serve.reading(await Kit.post(url, session, body))
    await Kit.eventually("a heartbeat", () => come.text.includes(": \n\n"))
    await Kit.release(url, session, 1)
    await Kit.eventually("another one", () => come.text.split("\"id\":1").at(1)?.includes(": \n\n") === true)
    await Kit.release(url, session, 2, 4)
    await Kit.eventually("the stream ends", () => come.done)
    assert.deepStrictEqual(answered(Serve.messagesIn(come.text)), [1, undefined, undefined, undefined, 2])
  })

  it("a batch gets an error at once for each call over maxInFlight, and the answers to the others", async () => {
    const session = await Kit.open(url)
    const ids = Array.from({ length: 1000 }, (_, i) => i)
    const response = await send(session, [...ids.map(short), note])
    assert.strictEqual(response.status, 200)
    const come = Serve.reading(response)
    await Kit.eventually("the errors", () => come.text.match(/Too many requests/g)?.length === 997)
    await release(session, 0, 1, 2)
    await Kit.eventually("the answers", () => come.done)
    const messages = Serve.messagesIn(come.text)
    assert.sameMembers(answered(messages), ids)
    assert.sameMembers(answered(messages.filter(({ result }) => result !== undefined)), [0, 1, 2])
    assert.include(await Kit.toolText(url, session, "heard"), "initialized")
  })

  it("a batch gets an error for an id that is running, and the answer to the first call with that id", async () => {
    const session = await Kit.open(url)
    await release(session, 1, 2)
    const messages = await Serve.messagesOf(await send(session, [1, 1, 2].map(short)))
    assert.sameMembers(answered(messages), [1, 1, 2])
    assert.include(messages.find(({ error, id }) => id === 1 && error).error.message, "this id is running")
  })

  it("a batch gets the answers from before its session ended, and errors for its other calls", async () => {
    const sent = await send(await Kit.open(url), [Kit.toolCall(1, "count"), note, Kit.toolCall(2, "crash")])
    const messages = await Serve.messagesOf(sent)
    assert.sameMembers(answered(messages), [1, 2])
    assert.isDefined(messages.find(({ id }) => id === 1).result)
    assert.include(messages.find(({ id }) => id === 2).error.message, "exit code 7")
  })

  it("refuses a batch as a whole if its first message is refused, but delivers notifications before a refused call", async () => {
    const session = await Kit.open(url)
    // The server's report arrives on the stream of the running calls.
    const running = Serve.reading(await send(session, calls(7, 8, 9)))
    const heard = async () => {
      const before = Serve.messagesIn(running.text).length
      await Kit.notify(url, session, "notifications/report")
      await Kit.eventually("the report", () => Serve.messagesIn(running.text).length > before)
      return Serve.messagesIn(running.text).at(-1).params.data
    }
    const whole = await send(session, [...calls(1), note, ...calls(2)])
    assert.deepStrictEqual([whole.status, await heard()], [429, ["initialize", "notifications/report"]])
    const part = await send(session, [note, ...calls(1)])
    assert.deepStrictEqual([part.status, (await heard()).at(-2)], [200, "notifications/initialized"])
    for (const { error, id } of [await whole.json(), ...await Serve.messagesOf(part)]) {
      assert.deepStrictEqual([id, error.message.slice(0, 17)], [1, "Too many requests"])
    }
    await Serve.remove(url, session)
    assert.strictEqual((await send(session, [note, ...calls(1)])).status, 404)
  })
})

describe("batches of clients that disconnect", () => {
  /** Waits until the progress of each call reaches a GET stream, so it is not kept for the batch. */
  const isHeard = async (session: string, ...ids: ReadonlyArray<number>) => {
    const come = Serve.reading(await Kit.listen(url, session))
    await Kit.eventually("progress of each reaches the GET stream", async () => {
      await release(session, ...ids)
      const heard = Serve.messagesIn(come.text).map(({ params }) => params.progressToken)
      return ids.every((id) => heard.includes(id))
    })
  }

  it("the progress of a batch goes to the GET stream if its client disconnects before the first answer", async () => {
    const session = await Kit.open(url)
    const stop = new AbortController()
    const gone = send(session, calls(1, 2), stop.signal).then((response) => response.text()).catch(() => "gone")
    await Kit.eventually("it runs", async () => (await Kit.inFlight(origin)) === 2)
    stop.abort()
    assert.strictEqual(await gone, "gone")
    await isHeard(session, 1, 2)
    await Serve.remove(url, session)
  })

  it("a client that leaves the answers to a batch unread keeps no process of an ended session", async () => {
    const { origin, url } = await Serve.gateway({ ...options, maxInFlight: 10, stallTimeout: "1 hour" })
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const big = Array.from({ length: 10 }, (_, id) => Kit.toolCall(id, "big", { size: 2_000_000 }))
    const socket = await Serve.unread(url, session, "POST", `[${[note, ...big].join()}]`)
    await Kit.eventually("all are answered", async () => (await Kit.inFlight(origin)) === 0)
    assert.strictEqual((await Serve.remove(url, session)).status, 204)
    assert.isFalse(Kit.alive(pid))
    socket.destroy()
  })

  it("a client that disconnects from the stream of a batch can resume it", async () => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    await release(session, 1)
    const [first] = await Serve.firstEvents(await send(session, calls(1)), 1)
    await Kit.eventually("its stream is gone", async () => (await Kit.sessionOn(origin, pid))?.streams === 0)
    await release(session, 1)
    const [next] = await Serve.firstEvents(await Kit.listen(url, session, { "last-event-id": first?.id ?? "" }), 1)
    assert.strictEqual(JSON.parse(next?.data ?? "").params.progress, 2)
    await Serve.remove(url, session)
  })

  it("a batch whose client disconnects during a blocked write reaches the server whole, and its progress goes to the GET stream", async () => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    process.kill(pid, "SIGSTOP")
    // More than the pipe holds.
    const large = Serve.notification("large", { x: "x".repeat(1_000_000) })
    const stop = new AbortController()
    const gone = send(session, [large, ...calls(1), note, ...calls(2)], stop.signal).catch(() => "gone")
    await Kit.eventually("it waits", async () => (await Kit.inFlight(origin)) === 2)
    stop.abort()
    assert.strictEqual(await gone, "gone")
    process.kill(pid, "SIGCONT")
    await isHeard(session, 1, 2)
    const order = JSON.parse(await Kit.toolText(url, session, "inOrder"))
    assert.deepStrictEqual(order.slice(2, 6), ["notifications/large", 1, "notifications/initialized", 2])
  })
})
