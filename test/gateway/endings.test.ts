/** Why sessions end, in the log, on the page and in the metrics. */
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"

/** An HTTP server that forgets its session after `initialize`. */
const upstream = await Serve.upstream((response, { id, method }) =>
  method === "initialize" ? Serve.initialized(response, id) : response.writeHead(404).end()
)
const file = join(Serve.directory(), "config.json")
const write = (mark: string) => {
  const mcpServers = {
    counter: Kit.counter(),
    brief: { ...Kit.counter(), idleTimeToLive: "100 millis" },
    gone: { ...Kit.counter(), streamLostTimeToLive: "200 millis" },
    remote: { url: `${upstream}/mcp`, era: "legacy" },
    edited: { ...Kit.counter(), env: { MARK: mark } }
  }
  writeFileSync(file, JSON.stringify({ mcpServers, gateway: { maxSessions: 2, cleanupInterval: "50 millis" } }))
}
write("one")
const { child, origin, output } = await Serve.command(["--config", file])

const closes = () =>
  output().split("\n").filter((line) => line.startsWith("{") && line.endsWith("}"))
    .map((line) => JSON.parse(line)).filter(({ message }) => message.startsWith("session closed: "))

type End = (session: string, url: string) => unknown
const call = (name: string, args = {}): End => async (session, url) =>
  (await Kit.post(url, session, Kit.toolCall(1, name, args))).text()
const endByOperator: End = async (session) => {
  const { sessions } = await Serve.overview(origin)
  const { id } = sessions.find((each) => each.session === session.slice(0, 8))
  await fetch(`${origin}/sessions/${id}`, { method: "DELETE" })
}
const loseStream: End = async (session, url) => {
  await (await Kit.listen(url, session)).body?.cancel()
}
const evict: End = async (_, url) => {
  await Kit.open(url)
  await Serve.remove(url, await Kit.open(url))
}
const reload: End = () => {
  write("two")
  child.kill("SIGHUP")
}

/** The level, the reason and a part of the text that the log has of each ending. */
const endings: ReadonlyArray<readonly [level: string, reason: string, text: string, backend: string, end: End]> = [
  ["INFO", "deleted", "the session was deleted", "counter", (session, url) => Serve.remove(url, session)],
  ["INFO", "ended by operator", "an operator ended the session", "counter", endByOperator],
  [
    "WARN",
    "process exited",
    "the back end ended with exit code 7; its stderr: out of memory",
    "counter",
    call("complain", { text: "out of memory\n", crash: true })
  ],
  ["WARN", "process exited", "the back end ended by signal SIGKILL", "counter", call("killed")],
  ["WARN", "backend failed", "the back end has closed its stdout", "counter", call("mute")],
  ["WARN", "backend failed", "no longer knows its session", "remote", call("anything")],
  ["INFO", "idle", "no request and no stream for 100ms", "brief", () => undefined],
  ["INFO", "client gone", "GET stream broke off, and the client sent nothing for 200ms", "gone", loseStream],
  ["INFO", "evicted", "maxSessions", "counter", evict],
  ["INFO", "reloaded", "the configuration of the back end has changed", "edited", reload]
]

describe("the reasons why sessions end", () => {
  for (const [level, reason, text, backend, end] of endings) {
    it(`logs the end of a session as ${reason}: ${text}`, async () => {
      const url = `${origin}/mcp/${backend}`
      const session = await Kit.open(url)
      await end(session, url)
      const find = () => closes().find(({ annotations }) => annotations.session === session.slice(0, 8))
      await Kit.eventually("it is logged", () => find() !== undefined)
      assert.deepStrictEqual([find()?.level, find()?.annotations.reason], [level, reason])
      assert.include(find()?.message, text)
    })
  }

  it("counts the ends of sessions by reason, with the same numbers on the page and in the metric", async () => {
    const counted: Record<string, number> = {}
    for (const { annotations: { reason = "" } } of closes()) counted[reason] = (counted[reason] ?? 0) + 1
    assert.deepStrictEqual((await Serve.overview(origin)).closes, counted)
    const metrics = await (await fetch(`${origin}/metrics`)).text()
    const measured: Record<string, number> = {}
    const samples = metrics.matchAll(/^mcp_gateway_closed_sessions_total\{.*reason="(.*?)"\} ([1-9]\d*)/gm)
    for (const [, reason = "", count] of samples) measured[reason] = (measured[reason] ?? 0) + Number(count)
    assert.deepStrictEqual(measured, counted)
    assert.lengthOf(Object.keys(counted), 8)
  })
})
