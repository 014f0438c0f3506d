/** Event streams of clients whose credentials expire. */
import { Effect } from "effect"
import { rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import type * as Gateway from "../../src/gateway/Gateway.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Modern from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const clock = await StillClock.make()
const now = () => clock.currentTimeMillisUnsafe()

/** Every client is Ada. Her credentials expire when a header says so. */
const ada: Gateway.Authenticator = {
  authenticate: ({ headers }) => {
    const expires = headers["x-expires"]
    return Effect.succeed({ id: "ada", claims: {}, expiresAt: expires === undefined ? undefined : Number(expires) })
  }
}
/** While this file exists, the processes of `gated` do not start. */
const gate = join(Serving.directory(), "gate")
const { args, command } = Kit.counter()
const gated = {
  command: "sh",
  args: ["-c", `while [ -e ${gate} ]; do sleep 0.02; done; exec "$0" "$@"`, command, ...args]
}
const backends = { counter: Kit.counter(), gated }
/** Nothing else ends a stream, and no heartbeat leads to a check of the credentials. */
const patience = { requestTimeout: "Infinity", startTimeout: "10 minutes", heartbeat: "10 minutes" } as const
const { origin } = await Serving.gateway({ backends, ...patience }, clock, ada)
const url = `${origin}/mcp/counter`

type Headers = Record<string, string>

const listening = (headers: Headers, session: string) => Kit.listen(url, session, headers)

/** A call that has told of progress once, and waits. */
const calling = async (headers: Headers, session: string, version = "2025-06-18") => {
  const call = Kit.toolCall(1, "held", { count: 2 })
  const sent = Kit.post(url, session, version === "2025-03-26" ? `[${call}]` : call, {
    ...headers,
    "mcp-protocol-version": version
  })
  await Kit.release(url, session, 1)
  return sent
}

const modern = (backend: string, method: string, params: object, headers: Headers) =>
  Modern.send(`${origin}/mcp/${backend}`, method, params, { headers, client: `${backend} ${method}` })

/** A modern client's call that is not answered. Its stream begins when `streamAfter` has passed. */
const unanswered = (backend: string, headers: Headers) => {
  const sent = modern(backend, "tools/call", { name: "silent", arguments: {} }, headers)
  return clock.passUntilSettled("the stream begins", sent, "1 second")
}

const kinds: Record<string, (headers: Headers, session: string) => Promise<Response>> = {
  "a GET stream": listening,
  "a stream of a request": calling,
  "a stream of a batch": (headers, session) => calling(headers, session, "2025-03-26"),
  "a stream of a modern client's call": (headers) => unanswered("counter", headers),
  "a stream of subscriptions/listen": (headers) =>
    modern("counter", "subscriptions/listen", { notifications: { toolsListChanged: true } }, headers),
  "a stream of a call whose process has not started yet": (headers) => {
    writeFileSync(gate, "")
    return unanswered("gated", headers)
  }
}

/** Starts a stream whose credentials expire in a minute. Ends it by that, and returns what it has sent. */
const expire = async (start: (headers: Headers) => Promise<Response>): Promise<string> => {
  const expiresAt = now() + 60_000
  const come = Serving.reading(await start({ "x-expires": `${expiresAt}` }))
  await clock.pass(expiresAt - 1 - now())
  // A round trip, in which an end of the stream would arrive.
  await fetch(`${origin}/health`)
  assert.isFalse(come.done)
  await clock.pass(5001)
  await Kit.eventually("the stream has ended", () => come.done)
  return come.text
}

describe("when credentials expire", () => {
  for (const [kind, start] of Object.entries(kinds)) {
    it(`${kind} ends within 5 seconds`, async () => {
      const session = await Kit.open(url)
      const text = await expire((headers) => start(headers, session))
      assert.notInclude(text, "\"result\"")
      rmSync(gate, { force: true })
    })
  }

  it("a running request goes on, and its client resumes with renewed credentials", async () => {
    const session = await Kit.open(url)
    const text = await expire((headers) => calling(headers, session))
    await Kit.release(url, session, 1, 2)
    const id = /^id: (.*)$/m.exec(text)?.[1] ?? ""
    const messages = await Serving.messagesOf(await Kit.listen(url, session, { "last-event-id": id }))
    assert.deepStrictEqual(messages.map(({ params, result }) => params?.progress ?? result.content[0].text), [
      2,
      "held"
    ])
  })

  it("the session goes on, and its client misses no message", async () => {
    const session = await Kit.open(url)
    const text = await expire(async (headers) => {
      const response = await listening(headers, session)
      await Kit.toolText(url, session, "flood", { count: 1 })
      return response
    })
    const id = /^id: (.*)$/m.exec(text)?.[1] ?? ""
    await Kit.toolText(url, session, "flood", { count: 2 })
    const events = await Serving.firstEvents(await Kit.listen(url, session, { "last-event-id": id }), 2)
    assert.deepStrictEqual(events.map(({ data }) => JSON.parse(data).params.data.trim()), ["1", "2"])
  })
})
