/** Access tokens of an OAuth authorization server. */
import { assert, describe, it } from "vitest"
import * as AuthorizationServer from "../kit/gateway/authorizationServer.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const wellKnown = "/.well-known/oauth-protected-resource"

const statusOf = async (url: string, token: string): Promise<number> =>
  (await Kit.initialize(url, Kit.bearer(token))).status

describe("a gateway with an authorization server", async () => {
  const server = await AuthorizationServer.start("/tenant")
  const { origin, url } = await Serving.gateway({
    backends: { counter: Kit.counter() },
    auth: { issuer: server.issuer, scopes: ["mcp"] },
    allowedOrigins: ["https://app.example.com"]
  })
  const token = (claims = {}, options = {}) => server.token({ aud: url, scope: "mcp", ...claims }, options)

  it("accepts a token for the URL of the back end, in each of its forms, or for the gateway as a whole", async () => {
    for (const path of ["/mcp", "/mcp/counter", "/counter/mcp"]) {
      for (const aud of [`${origin}${path}`, origin, `${origin}/`, ["https://other.example", origin]]) {
        assert.strictEqual(await statusOf(`${origin}${path}`, await token({ aud })), 200, `${path} ${String(aud)}`)
      }
    }
  })

  it("answers 401 without a token, and tells where its metadata is and which scopes to ask for", async () => {
    for (const path of ["/mcp", "/mcp/counter", "/counter/mcp"]) {
      const { headers, status } = await Kit.initialize(`${origin}${path}`)
      const challenge = `Bearer scope="mcp", resource_metadata="${origin}${wellKnown}${path}"`
      assert.deepStrictEqual([status, headers.get("www-authenticate")], [401, challenge])
    }
  })

  it("publishes the metadata of each form of its URL", async () => {
    for (const path of ["", "/mcp", "/mcp/counter", "/counter/mcp"]) {
      const response = await fetch(`${origin}${wellKnown}${path}`)
      assert.deepStrictEqual([response.status, response.headers.get("content-type")], [200, "application/json"])
      assert.deepStrictEqual(await response.json(), {
        resource: `${origin}${path}`,
        authorization_servers: [server.issuer],
        scopes_supported: ["mcp"],
        bearer_methods_supported: ["header"]
      })
    }
  })

  it("lets pages of listed origins read the metadata, and refuses other origins and hosts", async () => {
    const ask = (headers: Record<string, string>, method = "GET") =>
      fetch(`${origin}${wellKnown}/mcp`, { method, headers })
    const app = "https://app.example.com"
    assert.strictEqual((await ask({ origin: app })).headers.get("access-control-allow-origin"), app)
    const asked = { "access-control-request-method": "GET", "access-control-request-headers": "mcp-protocol-version" }
    const preflight = await ask({ origin: app, ...asked }, "OPTIONS")
    assert.deepStrictEqual(
      [preflight.status, preflight.headers.get("access-control-allow-headers")],
      [204, "mcp-protocol-version"]
    )
    assert.strictEqual((await ask({ origin: "https://evil.example" })).status, 403)
    const { status } = await Serving.ask(origin, `${wellKnown}/mcp`, { host: "evil.example" }, "GET")
    assert.strictEqual(status, 403)
    assert.strictEqual((await ask({}, "POST")).status, 405)
  })

  it("keeps a session across a renewed token of the same subject, and hides it from another subject", async () => {
    const first = Kit.bearer(await token({ sub: "grace" }))
    const session = await Kit.open(url, {}, first)
    const renewed = Kit.bearer(await token({ sub: "grace", jti: "2" }))
    const answer = await Kit.answerOf(await Kit.post(url, session, Kit.toolCall(1, "count"), renewed))
    assert.strictEqual(answer.result.content[0].text, "1")
    const other = Kit.bearer(await token({ sub: "eve" }))
    assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "count"), other)).status, 404)
  })
})
