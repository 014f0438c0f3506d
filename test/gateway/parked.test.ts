/** Calls whose server asks for input: parked until their client comes back, and whatever a client may come back with. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Kit from "../kit/gateway/gateway.ts"
import { answers, callTool, everything, request, textOf } from "../kit/gateway/modern.ts"
import { shortOrLong } from "../kit/long.ts"

const asking = (...args: ReadonlyArray<string>) => ({
  command: process.execPath,
  args: [new URL("../fixtures/asking-server.ts", import.meta.url).pathname, ...args]
})
const light = { command: "sh", args: [new URL("../fixtures/asking.sh", import.meta.url).pathname] }
const capabilities = everything

const directory = mkdtempSync(join(tmpdir(), "gateway-"))
/** What the back end `noting` has heard. */
const notes = join(directory, "heard")

let gateway: Kit.Running
let url = ""
/** Has no keys, so `/sessions` is readable without one. */
let keyless: Kit.Running
const keylessUrl = (backend: string) => `${keyless.origin}/mcp/${backend}`
beforeAll(async () => {
  gateway = await Kit.start({ backends: { asking: asking() }, keys: ["one", "two"], maxSessions: 50 })
  url = `${gateway.origin}/mcp/asking`
  keyless = await Kit.start({
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
})
afterAll(async () => {
  await Promise.all([gateway.stop(), keyless.stop()])
  rmSync(directory, { recursive: true })
})

const options = { capabilities, key: "one" }
/** The call again, with what is to be sent back. */
const again = (name: string, back: object, more: object = {}) =>
  callTool(url, name, {}, { ...options, again: back, ...more })

describe("a call whose server asks its client", () => {
  it("goes on in the very process that has asked, with the client's answer", async () => {
    const pid = textOf(await callTool(url, "pid", {}, options))
    const asked = await callTool(url, "ask", {}, options)
    assert.strictEqual(asked.status, 200)
    assert.strictEqual(asked.last.result.resultType, "input_required")
    assert.deepStrictEqual(Object.values(asked.last.result.inputRequests), [{
      method: "elicitation/create",
      params: {
        message: "one",
        requestedSchema: { type: "object", properties: { answer: { type: "string" } } },
        // The token was the server's own towards the gateway.
        _meta: { "example.com/kept": true }
      }
    }])
    const answered = await again("ask", answers(asked, "forty-two"), { id: "another" })
    assert.deepStrictEqual([textOf(answered), answered.last.id], ["answered forty-two", "another"])
    assert.strictEqual(answered.last.result.resultType, "complete")
    assert.strictEqual(textOf(await callTool(url, "pid", {}, options)), pid)
  })

  it("brings all that is asked at once, and as many rounds as it takes, each with a state of its own", async () => {
    const twice = await callTool(url, "twice", {}, options)
    assert.strictEqual(Object.keys(twice.last.result.inputRequests).length, 2)
    assert.strictEqual(textOf(await again("twice", answers(twice, "a", "b"))), "a and b")
    let said = await callTool(url, "rounds", { times: 4 }, options)
    const states = new Set<string>()
    for (const answer of ["1", "2", "3", "4"]) {
      states.add(said.last.result.requestState)
      said = await callTool(url, "rounds", { times: 4 }, { ...options, again: answers(said, answer) })
    }
    assert.deepStrictEqual([textOf(said), states.size], ["1,2,3,4", 4])
  })

  it("is asked again for what its client has left out, and is not harmed by what nobody asked for", async () => {
    const asked = await callTool(url, "twice", {}, options)
    const { inputResponses, requestState } = answers(asked, "a", "b")
    const [first, second] = Object.entries(inputResponses)
    const half = await again("twice", { requestState, inputResponses: Object.fromEntries([first ?? [], ["x", {}]]) })
    assert.deepStrictEqual(Object.keys(half.last.result.inputRequests), [second?.[0]])
    const whole = await again("twice", {
      requestState: half.last.result.requestState,
      inputResponses: Object.fromEntries([second ?? []])
    })
    assert.strictEqual(textOf(whole), "a and b")
  })

  it("stays parked when what its client sends is no object of objects", async () => {
    const asked = await callTool(url, "ask", {}, options)
    const { requestState } = answers(asked)
    for (const inputResponses of [null, 5, [], { x: 5 }, { x: null }]) {
      const refused = await again("ask", { requestState, inputResponses })
      assert.deepStrictEqual([refused.status, refused.last.error.code], [400, -32602], JSON.stringify(inputResponses))
    }
    assert.strictEqual(textOf(await again("ask", answers(asked, "still"))), "answered still")
  })

  it("takes answers that come before the question, under the name that its server gives it", async () => {
    const inputResponses = { fixed: { action: "accept", content: { answer: "known" } } }
    const said = await callTool(url, "ask", { id: "fixed" }, { ...options, again: { inputResponses } })
    assert.strictEqual(textOf(said), "answered known")
    // A name of the gateway's may be that of another question.
    const guessed = { "elicitation-1": { action: "accept", content: { answer: "guessed" } } }
    const asked = await callTool(url, "ask", {}, { ...options, again: { inputResponses: guessed } })
    assert.strictEqual(asked.last.result.resultType, "input_required")
    assert.strictEqual(textOf(await again("ask", answers(asked))), "answered yes")
  })

  it("for sampling and roots brings the same as for forms", async () => {
    for (const [name, result] of [["sample", { model: "m" }], ["roots", { roots: [] }]] as const) {
      const asked = await callTool(url, name, {}, options)
      const key = Object.keys(asked.last.result.inputRequests)[0] ?? ""
      const { requestState } = asked.last.result
      const said = await again(name, { requestState, inputResponses: { [key]: result } })
      assert.deepStrictEqual(JSON.parse(textOf(said)), result)
    }
  })

  it("whose server no longer wants to know gets its result with the next request", async () => {
    const client = { capabilities, client: "giveUp" }
    const pid = Number(textOf(await callTool(keylessUrl("asking"), "pid", {}, client)))
    const asked = await callTool(keylessUrl("asking"), "giveUp", {}, client)
    assert.strictEqual(asked.last.result.resultType, "input_required")
    process.kill(pid, "SIGUSR2")
    await Kit.eventually("the call is over", async () => (await Kit.sessionOn(keyless.origin, pid))?.inFlight === 0)
    const said = await callTool(keylessUrl("asking"), "giveUp", {}, { ...client, again: answers(asked) })
    assert.strictEqual(textOf(said), "gave up")
  })

  it("that its server wants to be made again after a visit to a page is made again", async () => {
    const asked = await callTool(url, "page", {}, options)
    assert.deepStrictEqual(Object.values(asked.last.result.inputRequests), [{
      method: "elicitation/create",
      params: { mode: "url", url: "https://example.com/x", message: "Sign in" }
    }])
    assert.strictEqual(textOf(await again("page", answers(asked))), "welcome")
  })

  it("is refused with -32021 and 400 when its client has not declared what it takes, and waits for nothing", async () => {
    const none = { key: "one", capabilities: {} }
    for (
      const [name, requiredCapabilities] of [
        ["ask", { elicitation: { form: {} } }],
        ["sample", { sampling: {} }],
        ["roots", { roots: {} }],
        ["page", { elicitation: { url: {} } }]
      ] as const
    ) {
      const said = await callTool(url, name, {}, none)
      assert.deepStrictEqual(
        [said.status, said.last.error.code, said.last.error.data],
        [400, -32021, { requiredCapabilities }],
        name
      )
    }
  })

  it("whose server sends what makes no sense ends with an error, and the gateway goes on", async () => {
    const said = await callTool(url, "odd", {}, options)
    assert.strictEqual(said.last.error.code, -32603)
    assert.strictEqual(textOf(await again("ask", answers(await callTool(url, "ask", {}, options)))), "answered yes")
  })

  it("that is over leaves no question unanswered", async () => {
    assert.strictEqual(textOf(await callTool(url, "hasty", {}, options)), "hasty")
    await Kit.eventually(
      "the server hears that",
      async () => textOf(await callTool(url, "heard", {}, options)).includes("hasty The call of this request has ended")
    )
  })

  it("may be asked under an id that no double holds, and answered under one", async () => {
    const asked = await callTool(url, "bigId", {}, options)
    const key = Object.keys(asked.last.result.inputRequests)[0] ?? ""
    const { requestState } = asked.last.result
    const said = await again("bigId", { requestState, inputResponses: { [key]: { roots: [] } } })
    assert.strictEqual(textOf(said), "heard")
  })

  it("which was refused for want of a capability leaves its process as good as before", async () => {
    const client = { ...options, client: "forms", capabilities: { elicitation: { form: {} } } }
    const pid = textOf(await callTool(url, "pid", {}, client))
    assert.strictEqual((await callTool(url, "page", {}, client)).last.error.code, -32021)
    const asked = await callTool(url, "ask", {}, client)
    assert.strictEqual(asked.last.result.resultType, "input_required")
    await callTool(url, "ask", {}, { ...client, again: answers(asked) })
    assert.strictEqual(textOf(await callTool(url, "pid", {}, client)), pid)
  })

  it("refuses what this revision knows no request for, in the server's own terms", async () => {
    assert.strictEqual(textOf(await callTool(url, "strange", {}, options)), "Method not found")
  })
})

describe("a state", () => {
  const refused = async (back: object, more: object = {}, name = "ask") => {
    const { last, status } = await again(name, back, more)
    assert.deepStrictEqual([status, last.error.code], [400, -32602])
    return String(last.error.message)
  }

  it("is good once", async () => {
    const asked = await callTool(url, "ask", {}, options)
    const back = answers(asked)
    const said = await Promise.all([again("ask", back), again("ask", back)])
    assert.deepStrictEqual(said.map(({ status }) => status).toSorted(), [200, 400])
    assert.match(await refused(back), /was used before, or its call has ended; make the call again/)
  })

  it("is of no use when it was changed in any place, cut, or made by somebody else", async () => {
    const asked = await callTool(url, "ask", {}, options)
    const { inputResponses, requestState } = answers(asked)
    for (const at of [0, 5, 20, 60, requestState.length - 1]) {
      const other = requestState[at] === "A" ? "B" : "A"
      const changed = requestState.slice(0, at) + other + requestState.slice(at + 1)
      assert.match(
        await refused({ inputResponses, requestState: changed }),
        /this gateway did not make it, or it was changed/
      )
    }
    for (const changed of ["", "x", requestState.slice(0, -4), `${requestState}AAAA`, `${requestState}=`, "ü"]) {
      await refused({ inputResponses, requestState: changed })
    }
    assert.strictEqual(textOf(await again("ask", { inputResponses, requestState })), "answered yes")
  })

  it("of another key's call is refused, and the call goes on for its owner", async () => {
    const asked = await callTool(url, "ask", {}, options)
    assert.match(await refused(answers(asked), { key: "two" }), /belongs to another key/)
    assert.strictEqual(textOf(await again("ask", answers(asked))), "answered yes")
  })

  it("of another request is refused: another tool, other arguments; their order does not matter", async () => {
    const asked = await callTool(url, "ask", { a: 1, b: { c: 2, d: 3 } }, options)
    assert.match(await refused(answers(asked), {}, "twice"), /belongs to another request/)
    assert.match(await refused(answers(asked)), /belongs to another request/)
    const said = await callTool(url, "ask", { b: { d: 3, c: 2 }, a: 1 }, { ...options, again: answers(asked) })
    assert.strictEqual(textOf(said), "answered yes")
  })

  it("of another gateway is refused, unless both have the same key: then it says that the call is not here", async () => {
    const stateKey = "0123456789abcdef0123456789abcdef"
    const backends = { asking: light }
    const [first, second] = await Promise.all([1, 2].map(() => Kit.start({ backends, stateKey })))
    const call = (origin: string | undefined, more: object = {}) =>
      callTool(`${origin}/mcp/asking`, "ask", {}, { capabilities, ...more })
    const asked = await call(first?.origin)
    assert.match((await call(second?.origin, { again: answers(asked) })).last.error.message, /has ended/)
    assert.match(
      (await call(url.replace(/\/mcp.*/, ""), { again: answers(asked), key: "one" })).last.error.message,
      /did not make it/
    )
    await Promise.all([first?.stop(), second?.stop()])
  })

  it("that came too late is refused; its call was cancelled, and its process with it, which had asked before", async () => {
    const there = keylessUrl("short")
    const pid = textOf(await callTool(there, "pid", {}, { capabilities }))
    const asked = await callTool(there, "ask", {}, { capabilities })
    await Kit.eventually("the process is gone", () => !Kit.alive(Number(pid)))
    const late = await callTool(there, "ask", {}, { capabilities, again: answers(asked) })
    assert.match(late.last.error.message, /has expired; make the call again/)
    assert.notStrictEqual(textOf(await callTool(there, "pid", {}, { capabilities })), pid)
  })
})

describe("what cannot be attributed", () => {
  it("is refused: a server's question after a call that was cancelled; the next call meets a clean process", async () => {
    const there = keylessUrl("fresh")
    const pid = textOf(await callTool(there, "pid", {}, { capabilities }))
    const aborter = new AbortController()
    const call = request(there, "tools/call", { name: "never" }, { capabilities, signal: aborter.signal })
    const left = call.then(() => "answered", () => "gone")
    const isInFlight = async (count: number) => (await Kit.sessionOn(keyless.origin, Number(pid)))?.inFlight === count
    await Kit.eventually("it runs", () => isInFlight(1))
    aborter.abort()
    assert.strictEqual(await left, "gone")
    await Kit.eventually("it is cancelled", () => isInFlight(0))
    // Nobody has asked yet, so the process goes on, with what it remembers.
    assert.strictEqual(textOf(await callTool(there, "pid", {}, { capabilities })), pid)
    const unclear = await callTool(there, "ask", {}, { capabilities })
    assert.match(unclear.last.error.message, /cannot tell whether for this call or for a cancelled earlier one/)
    const clean = await callTool(there, "ask", {}, { capabilities })
    assert.strictEqual(clean.last.result.resultType, "input_required")
    assert.notStrictEqual(textOf(await callTool(there, "pid", {}, { capabilities })), pid)
  })

  it("a server's question while nothing runs is answered with an error, not kept for the next call", async () => {
    const pid = Number(textOf(await callTool(keylessUrl("noting"), "pid", {}, { capabilities })))
    assert.strictEqual(textOf(await callTool(keylessUrl("noting"), "later", {}, { capabilities })), "later")
    process.kill(pid, "SIGUSR2")
    await Kit.eventually("the question is answered", () => readFileSync(notes, "utf8").includes("later "))
    assert.match(readFileSync(notes, "utf8"), /^later The gateway cannot tell which call/m)
  })
})

describe("limits", () => {
  it("a caller's lanes: the call that finds none waits, and is told after acquireTimeout", async () => {
    const hasty = await Kit.start({ backends: { few: { ...light, maxLanes: 2 } }, acquireTimeout: "50 millis" })
    for (let i = 0; i < 2; i++) await callTool(`${hasty.origin}/mcp/few`, "ask", {}, { capabilities })
    const third = await callTool(`${hasty.origin}/mcp/few`, "count", {}, { capabilities })
    assert.strictEqual(third.status, 503)
    assert.match(third.last.error.message, /All 2 processes of this client .* are busy/)
    assert.isString(third.headers.get("retry-after"))
    await hasty.stop()

    const there = keylessUrl("few")
    const asked = await callTool(there, "ask", {}, { capabilities })
    await callTool(there, "ask", {}, { capabilities })
    const waiting = callTool(there, "count", {}, { capabilities })
    await Kit.eventually("it waits", async () => {
      const metrics = await (await fetch(`${keyless.origin}/metrics`)).text()
      return metrics.includes("mcp_gateway_waiting_calls{resource=\"lane\"} 1\n")
    })
    await callTool(there, "ask", {}, { capabilities, again: answers(asked) })
    assert.strictEqual((await waiting).status, 200)
  })

  it("parked calls in all and for each key: one more is cancelled and told so", async () => {
    const own = await Kit.start({
      backends: { light },
      keys: ["one", "two"],
      maxParked: 3,
      maxParkedPerKey: 2
    })
    const there = `${own.origin}/mcp/light`
    const call = (key: string) => callTool(there, "ask", {}, { capabilities, key })
    const results = [await call("one"), await call("one"), await call("one"), await call("two"), await call("two")]
    assert.deepStrictEqual(results.map(({ status }) => status), [200, 200, 503, 200, 503])
    assert.match(results[2]?.last.error.message, /^2 calls already wait for input/)
    assert.match(results[4]?.last.error.message, /^3 calls already wait for input/)
    await own.stop()
  })

  it("a parked call whose process has died gives its place to the next", async () => {
    const own = await Kit.start({ backends: { light }, maxParked: 1, parkedTimeToLive: "Infinity" })
    const there = `${own.origin}/mcp/light`
    await callTool(there, "ask", {}, { capabilities })
    const { sessions } = await (await fetch(`${own.origin}/sessions`)).json()
    process.kill(sessions[0].pid, "SIGKILL")
    await Kit.eventually(
      "another call is parked",
      async () => (await callTool(there, "ask", {}, { capabilities })).status === 200
    )
    await own.stop()
  })

  it("requests of one client at once: one more is refused with 429", async () => {
    const there = keylessUrl("narrow")
    const pid = Number(textOf(await callTool(there, "pid")))
    const calls = [1, 2, 3].map(() => callTool(there, "untilSignal"))
    // The others run until the process gets the signal.
    assert.strictEqual((await Promise.race(calls)).status, 429)
    process.kill(pid, "SIGUSR2")
    assert.deepStrictEqual((await Promise.all(calls)).map(({ status }) => status).toSorted(), [200, 200, 429])
  })

  it("many calls are parked at once, each goes on in its own process, and none is left in the end", async () => {
    const count = shortOrLong(50, 1000)
    const own = await Kit.start({
      backends: { light: { ...light, maxLanes: 1000, maxInFlight: 1000, era: "legacy" } },
      maxSessions: 1100,
      maxSessionsPerBackend: 1100,
      maxParkedPerKey: 1000,
      acquireTimeout: "2 minutes",
      startTimeout: "2 minutes"
    })
    const there = `${own.origin}/mcp/light`
    const numbers = [...Array(count).keys()]
    const parked: Array<Awaited<ReturnType<typeof callTool>>> = []
    const next = [...numbers]
    const work = async () => {
      for (let i = next.shift(); i !== undefined; i = next.shift()) {
        parked[i] = await callTool(there, "ask", { i }, { capabilities })
      }
    }
    await Promise.all([...Array(20)].map(work))
    assert.deepStrictEqual([...new Set(parked.map(({ status }) => status))], [200])
    const pids = new Set<string>()
    for (const [i, asked] of parked.entries()) {
      const said = await callTool(there, "ask", { i }, { capabilities, again: answers(asked) })
      pids.add(textOf(said))
    }
    assert.strictEqual(pids.size, count)
    await own.stop()
    assert.deepStrictEqual([...pids].filter((pid) => Kit.alive(Number(pid))), [])
  }, 180_000)
})

describe("the end of the gateway", () => {
  it("cancels parked calls at once instead of waiting for their clients, and leaves no process and no port", async () => {
    // A stop that waited for the client would exceed the test's time-out.
    const own = await Kit.start({ backends: { asking: asking() }, drainTimeout: "1 hour" })
    const there = `${own.origin}/mcp/asking`
    const pid = Number(textOf(await callTool(there, "pid", {}, { capabilities })))
    const asked = await callTool(there, "ask", {}, { capabilities })
    assert.strictEqual(asked.last.result.resultType, "input_required")
    await own.stop()
    assert.isFalse(Kit.alive(pid))
    await new Promise<void>((resolve, reject) => {
      const server = createServer().on("error", reject)
      server.listen(Number(new URL(own.origin).port), "127.0.0.1", () => server.close(() => resolve()))
    })
  })
})
