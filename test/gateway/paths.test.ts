/** Paths of the gateway, and its answers at other paths. */
import { assert, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"

const { origin } = await Serve.command([])
const keyed = await Serve.command([], { GATEWAY_KEYS: "a-key-for-clients" })
const proxied = await Serve.command(["--trusted-proxies", "127.0.0.2", "--proxy-header", "X-Forwarded-User"])

describe("paths", () => {
  it("serve a back end at both of its URLs and, as the only one, at /mcp, with the same sessions", async () => {
    const session = await Kit.open(`${origin}/counter-server/mcp`)
    for (const [i, path] of ["/counter-server/mcp", "/mcp/counter-server", "/mcp", "/mcp/"].entries()) {
      assert.strictEqual(await Kit.toolText(`${origin}${path}`, session, "count"), String(i + 1))
    }
    assert.strictEqual((await Kit.initialize(`${origin}/other/mcp`)).status, 404)
  })

  it("are compared literally: another spelling of a path gets 404", async () => {
    const operators = ["//sessions", "/Sessions", "/%73essions", "/sessions/", "/sessions;a", "//sessions/events"]
      .concat(["/sessions//events", "/METRICS", "//metrics", "/%6detrics", "/Health", "//ready", "//", "/%ff"])
    const mcp = ["//mcp", "/MCP", "/%6dcp", "//mcp/counter-server", "/mcp//counter-server", "/mcp/Counter-Server"]
      .concat(["/mcp/%63ounter-server", "/counter-server//mcp", "/counter-server/MCP", "/mcp/%ff", "/mcp/%"])
    const elsewhere = ["/mcp/..%2fsessions", "/mcp/%2e%2e", "/mcp/counter-server%00", "/mcp/__proto__"]
    for (const path of [...operators, ...mcp, ...elsewhere]) {
      for (const method of ["GET", "POST"]) {
        const { status, text } = await Serve.ask(origin, path, {}, method)
        assert.deepStrictEqual([path, method, status], [path, method, 404])
        assert.isNotEmpty(text)
      }
    }
    const { error } = await (await fetch(`${origin}/Sessions`)).json()
    assert.strictEqual(error, "Not found. Did you mean /sessions? Write it exactly so: paths are case-sensitive.")
    // A query is ignored.
    assert.strictEqual((await fetch(`${origin}/sessions?a=//b`)).status, 200)
  })

  it("answer a request for OAuth metadata with 404 and how to authenticate instead", async () => {
    const resource = "/.well-known/oauth-protected-resource"
    const places = [resource, `${resource}/mcp/counter-server`, "/.well-known/oauth-authorization-server"]
    const openId = ["", "/mcp/counter-server"].map((path) => `${path}/.well-known/openid-configuration`)
    for (const path of [...places, ...openId, "/register"]) {
      const ways = [[origin, "asks for no key"], [keyed.origin, "Bearer KEY"], [proxied.origin, "the proxy"]] as const
      for (const [at, instead] of ways) {
        const response = await fetch(`${at}${path}`, { method: path === "/register" ? "POST" : "GET" })
        const told = [path, response.status, response.headers.get("content-type")]
        assert.deepStrictEqual(told, [path, 404, "application/json"])
        assert.match((await response.json()).error_description, new RegExp(`This gateway has no OAuth.*${instead}`))
      }
    }
  })

  it("answer a request without a key with WWW-Authenticate, which says how to send the key", async () => {
    for (const path of ["/mcp", "/mcp/counter-server", "/counter-server/mcp"]) {
      const { headers, status } = await Kit.initialize(`${keyed.origin}${path}`)
      assert.deepStrictEqual([status, headers.get("www-authenticate")], [
        401,
        "Bearer realm=\"effect-session-pool\", error_description=\"" +
        "Send one of the gateway's keys as Authorization: Bearer KEY or as X-API-Key: KEY\""
      ])
    }
  })
})
