/** Parked calls: calls that wait for the answer of their client to a question of their server. */
import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import type { Options, Said } from "../kit/gateway/modern.ts"
import { answers, asking, callTool, everything as capabilities, light, retry, textOf } from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"

/** The file in which the back end `noting` writes what it receives. */
const notes = join(Serving.directory(), "heard")

type More = Options & { readonly again?: object }
/** Calls tools of a back end, with these options. */
const clientOf = (url: string, options: More = { capabilities }) => {
  const call = (name: string, args: object = {}, more: More = {}) => callTool(url, name, args, { ...options, ...more })
  return {
    call,
    text: async (name: string, args: object = {}, more: More = {}) => textOf(await call(name, args, more)),
    pid: async () => Number(textOf(await call("pid")))
  }
}
const questionsOf = ({ last }: Said): ReadonlyArray<unknown> => Object.values(last.result.inputRequests)
const isAsked = (said: Said) => assert.strictEqual(said.last.result.resultType, "input_required")
const isRefused = (said: Said, code: number, message = /./) => {
  assert.deepStrictEqual([said.status, said.last.error.code], [400, code])
  assert.match(said.last.error.message, message)
}

const { url } = await Serving.gateway({ backends: { asking: asking() }, keys: ["one", "two"], maxSessions: 50 })
const [one, two] = [clientOf(url, { capabilities, key: "one" }), clientOf(url, { capabilities, key: "two" })]
/** Has no keys, so `/sessions` is readable without one. */
const { origin: keyless } = await Serving.gateway({
  backends: {
    asking: asking(),
    fresh: asking(),
    short: { ...asking(), parkedTimeToLive: "50 millis" },
    noting: asking("--note", notes),
    narrow: { ...asking(), maxInFlight: 2 },
    few: { ...light, maxLanes: 2 }
  },
  acquireTimeout: "1 hour"
})
const keylessOf = (backend: string, more: More = {}) => clientOf(`${keyless}/mcp/${backend}`, { capabilities, ...more })

describe("parked calls", () => {
  it("go on in the process that asked, with the client's answer", async () => {
    const pid = await one.pid()
    const asked = await one.call("ask")
    assert.strictEqual(asked.status, 200)
    isAsked(asked)
    assert.deepStrictEqual(questionsOf(asked), [{
      method: "elicitation/create",
      params: {
        message: "one",
        requestedSchema: { type: "object", properties: { answer: { type: "string" } } },
        // The token was the server's own towards the gateway.
        _meta: { "example.com/kept": true }
      }
    }])
    const answered = await one.call("ask", {}, { again: answers(asked, "forty-two"), id: "another" })
    assert.deepStrictEqual([textOf(answered), answered.last.id], ["answered forty-two", "another"])
    assert.strictEqual(answered.last.result.resultType, "complete")
    assert.strictEqual(await one.pid(), pid)
  })

  it("pass on all concurrent questions, and any number of rounds, each with a new state", async () => {
    const both = await one.call("twice")
    assert.lengthOf(questionsOf(both), 2)
    assert.strictEqual(await one.text("twice", {}, { again: answers(both, "a", "b") }), "a and b")
    let said = await one.call("rounds", { times: 4 })
    const states = new Set<string>()
    for (const round of ["1", "2", "3", "4"]) {
      states.add(said.last.result.requestState)
      said = await one.call("rounds", { times: 4 }, { again: answers(said, round) })
    }
    assert.deepStrictEqual([textOf(said), states.size], ["1,2,3,4", 4])
  })

  it("ask again for a missing answer, and ignore an answer without a question", async () => {
    const { inputResponses, requestState } = answers(await one.call("twice"), "a", "b")
    const [[first, a] = ["", {}], [second, b] = ["", {}]] = Object.entries(inputResponses)
    const half = await one.call("twice", {}, { again: { requestState, inputResponses: { [first]: a, x: {} } } })
    assert.deepStrictEqual(Object.keys(half.last.result.inputRequests), [second])
    assert.strictEqual(await one.text("twice", {}, { again: retry(half, () => b) }), "a and b")
  })

  it("stay parked when the client's answers are no object of objects", async () => {
    const asked = await one.call("ask")
    const { requestState } = answers(asked)
    for (const inputResponses of [null, 5, [], { x: 5 }, { x: null }]) {
      isRefused(await one.call("ask", {}, { again: { requestState, inputResponses } }), -32602)
    }
    assert.strictEqual(await one.text("ask", {}, { again: answers(asked, "still") }), "answered still")
  })

  it("take answers that come before the question, under the server's name of the question", async () => {
    const known = { action: "accept", content: { answer: "known" } }
    const fixed = { again: { inputResponses: { fixed: known } } }
    assert.strictEqual(await one.text("ask", { id: "fixed" }, fixed), "answered known")
    // The gateway gives the same name to different questions.
    const asked = await one.call("ask", {}, { again: { inputResponses: { "elicitation-1": known } } })
    isAsked(asked)
    assert.strictEqual(await one.text("ask", {}, { again: answers(asked) }), "answered yes")
  })

  it("are answered as JSON, also when the client's answer took longer than streamAfter", async () => {
    const clock = AheadClock.make()
    const { url } = await Serving.gateway({ backends: { asking: asking() } }, clock)
    const { call } = clientOf(url)
    const again = answers(await call("ask"))
    clock.pass("1 minute")
    const said = await call("ask", {}, { again })
    assert.deepStrictEqual([said.headers.get("content-type"), textOf(said)], ["application/json", "answered yes"])
  })

  it("return the result with the retry when the server withdraws its question", async () => {
    const client = keylessOf("asking", { client: "giveUp" })
    const pid = await client.pid()
    const asked = await client.call("giveUp")
    isAsked(asked)
    process.kill(pid, "SIGUSR2")
    await Kit.untilRunning(keyless, pid, 0)
    assert.strictEqual(await client.text("giveUp", {}, { again: answers(asked) }), "gave up")
  })

  it("run again when the server asks for that after an elicitation by URL", async () => {
    const asked = await one.call("page")
    const params = { mode: "url", url: "https://example.com/x", message: "Sign in" }
    assert.deepStrictEqual(questionsOf(asked), [{ method: "elicitation/create", params }])
    assert.strictEqual(await one.text("page", {}, { again: answers(asked) }), "welcome")
  })

  it.each([
    { name: "ask", requiredCapabilities: { elicitation: { form: {} } } },
    { name: "sample", requiredCapabilities: { sampling: {} }, result: { model: "m" } },
    { name: "roots", requiredCapabilities: { roots: {} }, result: { roots: [] } },
    { name: "page", requiredCapabilities: { elicitation: { url: {} } } }
  ])(
    "deliver the answer to $name, or are refused with -32021 if the client lacks the capability",
    async ({ name, requiredCapabilities, result }) => {
      if (result !== undefined) {
        const again = retry(await one.call(name), () => result)
        assert.deepStrictEqual(JSON.parse(await one.text(name, {}, { again })), result)
      }
      const said = await one.call(name, {}, { capabilities: {} })
      isRefused(said, -32021)
      assert.deepStrictEqual(said.last.error.data, { requiredCapabilities })
    }
  )

  it("keep their process when they are refused for a missing capability", async () => {
    const forms = keylessOf("asking", { client: "forms", capabilities: { elicitation: { form: {} } } })
    const pid = await forms.pid()
    isRefused(await forms.call("page"), -32021)
    await forms.text("ask", {}, { again: answers(await forms.call("ask")) })
    assert.strictEqual(await forms.pid(), pid)
  })

  it("end with an error when the server sends an invalid question, and the gateway goes on", async () => {
    assert.strictEqual((await one.call("odd")).last.error.code, -32603)
    assert.strictEqual(await one.text("ask", {}, { again: answers(await one.call("ask")) }), "answered yes")
  })

  it("answer the server's open question when they end", async () => {
    assert.strictEqual(await one.text("hasty"), "hasty")
    const answered = async () => (await one.text("heard")).includes("hasty The call of this request has ended")
    await Kit.eventually("the server has the answer", answered)
  })

  it("accept a question whose id has more digits than a double holds, and refuse a request that the revision lacks", async () => {
    const again = retry(await one.call("bigId"), () => ({ roots: [] }))
    assert.strictEqual(await one.text("bigId", {}, { again }), "heard")
    assert.strictEqual(await one.text("strange"), "Method not found")
  })
})

describe("the state of a parked call", () => {
  it("is valid once", async () => {
    const again = answers(await one.call("ask"))
    const said = await Promise.all([one.call("ask", {}, { again }), one.call("ask", {}, { again })])
    assert.deepStrictEqual(said.map(({ status }) => status).toSorted(), [200, 400])
    const late = await one.call("ask", {}, { again })
    isRefused(late, -32602, /was used before, or its call has ended; make the call again/)
  })

  it("is refused when it was changed, cut or made up, and the call goes on", async () => {
    const { inputResponses, requestState } = answers(await one.call("ask"))
    const send = (requestState: string) => one.call("ask", {}, { again: { inputResponses, requestState } })
    for (const at of [0, 5, 20, 60, requestState.length - 1]) {
      const other = requestState[at] === "A" ? "B" : "A"
      const changed = requestState.slice(0, at) + other + requestState.slice(at + 1)
      isRefused(await send(changed), -32602, /this gateway did not make it, or it was changed/)
    }
    for (const changed of ["", "x", requestState.slice(0, -4), `${requestState}AAAA`, `${requestState}=`, "ü"]) {
      isRefused(await send(changed), -32602)
    }
    assert.strictEqual(textOf(await send(requestState)), "answered yes")
  })

  it("is refused for another caller, and the call goes on for its owner", async () => {
    const again = answers(await one.call("ask"))
    isRefused(await two.call("ask", {}, { again }), -32602, /belongs to another caller/)
    assert.strictEqual(await one.text("ask", {}, { again }), "answered yes")
  })

  it("is refused for another tool or other arguments, but their order does not matter", async () => {
    const again = answers(await one.call("ask", { a: 1, b: { c: 2, d: 3 } }))
    for (const name of ["twice", "ask"]) {
      isRefused(await one.call(name, {}, { again }), -32602, /belongs to another request/)
    }
    assert.strictEqual(await one.text("ask", { b: { d: 3, c: 2 }, a: 1 }, { again }), "answered yes")
  })

  it("is refused by another gateway, as unknown or, with the same stateKey, as ended", async () => {
    const settings = { backends: { asking: light }, stateKey: "0123456789abcdef0123456789abcdef" }
    const [first, second] = [await Serving.gateway(settings), await Serving.gateway(settings)]
    const again = answers(await clientOf(first.url).call("ask"))
    isRefused(await clientOf(second.url).call("ask", {}, { again }), -32602, /has ended/)
    isRefused(await one.call("ask", {}, { again }), -32602, /did not make it/)
  })

  it("is refused after parkedTimeToLive, which has ended the call and its process", async () => {
    const short = keylessOf("short")
    const pid = await short.pid()
    const again = answers(await short.call("ask"))
    await Kit.eventually("the process is gone", () => !Kit.alive(pid))
    isRefused(await short.call("ask", {}, { again }), -32602, /has expired; make the call again/)
    assert.notStrictEqual(await short.pid(), pid)
  })
})

describe("questions of unknown calls", () => {
  it("are avoided: the call after a cancelled one gets a new process", async () => {
    const fresh = keylessOf("fresh")
    const pid = await fresh.pid()
    const leave = Serving.leaving((signal) => fresh.call("never", {}, { signal }))
    await Kit.untilRunning(keyless, pid)
    await leave()
    await Kit.eventually("its process is gone", () => !Kit.alive(pid))
    isAsked(await fresh.call("ask"))
    assert.notStrictEqual(await fresh.pid(), pid)
  })

  it("are answered with an error while no call runs, and not kept for the next call", async () => {
    const noting = keylessOf("noting")
    const pid = await noting.pid()
    assert.strictEqual(await noting.text("later"), "later")
    process.kill(pid, "SIGUSR2")
    await Kit.eventually("the question is answered", () => readFileSync(notes, "utf8").includes("later "))
    assert.match(readFileSync(notes, "utf8"), /^later The gateway cannot tell which call/m)
  })
})

describe("limits of parked calls", () => {
  it("make a call wait for a lane of its caller, at most for acquireTimeout", async () => {
    const backends = { few: { ...light, maxLanes: 2 } }
    const hasty = clientOf((await Serving.gateway({ backends, acquireTimeout: "50 millis" })).url)
    for (let i = 0; i < 2; i++) await hasty.call("ask")
    const third = await hasty.call("count")
    assert.strictEqual(third.status, 503)
    assert.match(third.last.error.message, /All 2 processes of this client .* are busy/)
    assert.isString(third.headers.get("retry-after"))

    const few = keylessOf("few")
    const again = answers(await few.call("ask"))
    await few.call("ask")
    const waiting = few.call("count")
    const isWaiting = "mcp_gateway_waiting_calls{resource=\"lane\"} 1\n"
    await Kit.eventually("it waits", async () => (await Serving.scrape(keyless)).includes(isWaiting))
    await few.call("ask", {}, { again })
    assert.strictEqual((await waiting).status, 200)
  })

  it("refuse a call beyond maxParked and maxParkedPerKey", async () => {
    const limits = { keys: ["one", "two"], maxParked: 3, maxParkedPerKey: 2 }
    const { url } = await Serving.gateway({ backends: { light }, ...limits })
    const results: Array<Said> = []
    for (const key of ["one", "one", "one", "two", "two"]) {
      results.push(await clientOf(url, { capabilities, key }).call("ask"))
    }
    assert.deepStrictEqual(results.map(({ status }) => status), [200, 200, 503, 200, 503])
    assert.match(results[2]?.last.error.message, /^2 calls already wait for input/)
    assert.match(results[4]?.last.error.message, /^3 calls already wait for input/)
  })

  it("do not count a parked call whose process has died", async () => {
    const own = await Serving.gateway({ backends: { light }, maxParked: 1, parkedTimeToLive: "Infinity" })
    const { call } = clientOf(own.url)
    await call("ask")
    const { sessions } = await Serving.overview(own.origin)
    process.kill(sessions[0].pid, "SIGKILL")
    await Kit.eventually("another call is parked", async () => (await call("ask")).status === 200)
  })

  it("refuse a request beyond maxInFlight with 429", async () => {
    const narrow = keylessOf("narrow", { capabilities: {} })
    const pid = await narrow.pid()
    const calls = [1, 2, 3].map(() => narrow.call("untilSignal"))
    // The others run until the process gets the signal.
    assert.strictEqual((await Promise.race(calls)).status, 429)
    process.kill(pid, "SIGUSR2")
    assert.deepStrictEqual((await Promise.all(calls)).map(({ status }) => status).toSorted(), [200, 200, 429])
  })
})

describe("a gateway with parked calls", () => {
  it("cancels parked calls when it stops, and leaves no process and no port", async () => {
    // A stop that waited for the client would exceed the test's time-out.
    const { origin, stop, url } = await Serving.gateway({ backends: { asking: asking() }, drainTimeout: "1 hour" })
    const client = clientOf(url)
    const pid = await client.pid()
    isAsked(await client.call("ask"))
    await stop()
    assert.isFalse(Kit.alive(pid))
    assert.isFalse(await fetch(`${origin}/health`).then(() => true, () => false))
  })
})
