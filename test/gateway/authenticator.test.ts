/** A program's own authenticator in place of the gateway's keys. */
import { Effect } from "effect"
import { HttpServerResponse } from "effect/http"
import { assert, describe, it } from "vitest"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const metadata = "/.well-known/oauth-protected-resource"

const byHeader: Gateway.Authenticator = {
  authenticate: ({ headers }) =>
    headers["x-user"] === undefined
      ? Effect.fail(
        new Gateway.Challenge({ status: 401, message: "Say who you are", wwwAuthenticate: "Header x-user" })
      )
      : Effect.succeed({ id: headers["x-user"], claims: {} }),
  routes: [{ path: metadata, handler: Effect.succeed(HttpServerResponse.text("the metadata")) }]
}

describe("an authenticator that reads a header", async () => {
  const options = { backends: { a: Kit.counter() }, maxSessionsPerKey: 2 }
  const { origin, url } = await Serving.gateway(options, undefined, byHeader)

  it("refuses a request with its own status, message and WWW-Authenticate", async () => {
    const response = await Kit.initialize(url)
    assert.deepStrictEqual([response.status, response.headers.get("www-authenticate")], [401, "Header x-user"])
    assert.strictEqual((await response.json()).error.message, "Say who you are")
  })

  it("hides the session of one principal from another principal", async () => {
    const ada = { "x-user": "ada@example.org" }
    const session = (await Kit.initialize(url, ada)).headers.get("mcp-session-id") ?? ""
    const count = (user: Record<string, string>) => Kit.post(url, session, Kit.toolCall(1, "count"), user)
    const eve = await count({ "x-user": "eve@example.org" })
    assert.deepStrictEqual([eve.status, (await eve.json()).error.code], [404, -32001])
    const answer = await (await count(ada)).json()
    assert.strictEqual(answer.result.content[0].text, "1")
  })

  it("limits the sessions of each principal, without keys in the settings", async () => {
    const open = async (user: string) =>
      (await Kit.initialize(url, { "x-user": user })).headers.get("mcp-session-id") ?? ""
    const count = async (user: string, session: string) =>
      (await Kit.post(url, session, Kit.toolCall(1, "count"), { "x-user": user })).status
    const first = await open("grace")
    const other = await open("alan")
    for (const session of [await open("grace"), await open("grace")]) {
      assert.strictEqual(await count("grace", session), 200)
    }
    assert.deepStrictEqual([await count("grace", first), await count("alan", other)], [404, 200])
  })

  it("adds its own routes, and leaves the operators' routes closed without adminKeys", async () => {
    assert.strictEqual(await (await fetch(`${origin}${metadata}`)).text(), "the metadata")
    assert.strictEqual((await fetch(`${origin}/sessions`)).status, 403)
  })
})
