/** Callers, as operators see them. */
import { Effect } from "effect"
import { assert, describe, it } from "vitest"
import type * as Gateway from "../../src/gateway/Gateway.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Modern from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"

const operator = Kit.bearer("operators-key")

describe("the caller of a session in /sessions", async () => {
  const byHeader: Gateway.Authenticator = {
    authenticate: ({ headers }) =>
      Effect.succeed({
        id: headers["x-id"] ?? "",
        name: headers["x-name"] === undefined ? undefined : decodeURIComponent(headers["x-name"]),
        claims: { token: "a-secret-token" }
      })
  }
  const options = { backends: { a: Kit.counter() }, adminKeys: ["operators-key"] }
  const { origin, url } = await Serving.gateway(options, undefined, byHeader)

  it.each([
    ["is its name", { "x-id": "0123456789abcdef", "x-name": "Ada" }, "Ada"],
    ["is the short id without a name", { "x-id": "0123456789abcdef" }, "01234567"],
    ["is null for callers that cannot be told apart", {}, null],
    [
      "has escaped control characters",
      { "x-id": "1", "x-name": encodeURIComponent("A\u001b[31m\n\u202e") },
      "A\\u001b[31m\\n\\u202e"
    ],
    ["is cut after 64 characters", { "x-id": "2", "x-name": "a".repeat(1000) }, "a".repeat(64)]
  ])("%s", async (_, headers, principal) => {
    const session = await Kit.open(url, {}, headers)
    const { sessions } = await Serving.overview(origin, operator)
    const found = sessions.find((each) => each.session === session.slice(0, 8))
    assert.strictEqual(found?.principal, principal)
    assert.notInclude(JSON.stringify(sessions), "a-secret-token")
  })

  it("is the caller of a modern client's lane, too", async () => {
    const headers = { "x-id": "3", "x-name": "Grace" }
    assert.strictEqual(await Modern.toolText(url, "count", { headers }), "1")
    const { sessions } = await Serving.overview(origin, operator)
    const lane = sessions.find(({ session }) => session.startsWith("lane"))
    assert.strictEqual(lane?.principal, "Grace")
  })
})

describe("the caller in the log", () => {
  it("annotates a session that opens, closes or cannot be opened with the caller, and never with its key", async () => {
    const key = "a-secret-key-0123"
    const mcpServers = { good: Kit.counter(), bad: Kit.counter("--fail-start") }
    const file = Serving.file("config.json", { mcpServers })
    const { origin, output } = await Serving.command(["--config", file], { GATEWAY_KEYS: `ada:${key}` })
    const headers = Kit.bearer(key)
    const session = await Kit.open(`${origin}/mcp/good`, {}, headers)
    await Serving.remove(`${origin}/mcp/good`, session, headers)
    await (await Kit.initialize(`${origin}/mcp/bad`, headers)).text()
    const principalOf = (words: string) => {
      const line = output().split("\n").find((line) => line.startsWith("{") && line.includes(words))
      return line === undefined ? undefined : JSON.parse(line).annotations.principal
    }
    for (const words of ["session opened", "session closed", "No session was opened"]) {
      await Kit.eventually(`it logs ${words}`, () => principalOf(words) !== undefined)
      assert.strictEqual(principalOf(words), "ada", words)
    }
    assert.notInclude(output(), key)
  })
})
