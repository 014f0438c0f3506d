/** The paths that are served, and what is said at others. */
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"

const key = "a-key-for-clients"
const { args, command } = Kit.counter()

describe("paths", () => {
  let open: Kit.Run
  let keyed: Kit.Run
  let url: string
  let origin: string
  let keyedOrigin: string
  beforeAll(async () => {
    open = Kit.run(["--port", "0", "--", command, ...args])
    keyed = Kit.run(["--port", "0", "--", command, ...args], { GATEWAY_KEYS: key })
    url = await Kit.urlOf(open)
    origin = new URL(url).origin
    keyedOrigin = new URL(await Kit.urlOf(keyed)).origin
  })
  afterAll(async () => {
    for (const { child, exit } of [open, keyed]) {
      child.kill("SIGTERM")
      await exit
    }
  })

  it("serve a back end at a URL that ends in /mcp, with the sessions that it has at the other", async () => {
    const [, , name = ""] = new URL(url).pathname.split("/")
    const session = await Kit.open(`${origin}/${name}/mcp`)
    assert.strictEqual(await Kit.toolText(`${origin}/${name}/mcp`, session, "count"), "1")
    assert.strictEqual(await Kit.toolText(url, session, "count"), "2")
    assert.strictEqual(await Kit.toolText(`${url}/`, session, "count"), "3")
    assert.strictEqual((await Kit.initialize(`${origin}/other/mcp`)).status, 404)
  })

  it("are taken literally: another way to write one is 404, with a body", async () => {
    const same = [
      "//sessions",
      "/Sessions",
      "/%73essions",
      "/sessions/",
      "/sessions;a",
      "//sessions/events",
      "/sessions//events",
      "/METRICS",
      "//metrics",
      "/%6detrics",
      "/Health",
      "//ready",
      "//",
      "//mcp",
      "/MCP",
      "/%6dcp",
      "//mcp/counter-server",
      "/mcp//counter-server",
      "/mcp/Counter-Server",
      "/mcp/%63ounter-server",
      "/counter-server//mcp",
      "/counter-server/MCP",
      "/mcp/%ff",
      "/%ff",
      "/mcp/%"
    ]
    for (const path of same) {
      for (const method of ["GET", "POST"]) {
        const response = await fetch(`${origin}${path}`, { method, headers: Kit.headers })
        assert.deepStrictEqual([path, method, response.status], [path, method, 404])
        assert.isNotEmpty(await response.text())
      }
    }
    const { error } = await (await fetch(`${origin}/Sessions`)).json()
    assert.strictEqual(error, "Not found. Did you mean /sessions? Write it exactly so: paths are case-sensitive.")
    // A query changes nothing.
    assert.strictEqual((await fetch(`${origin}/sessions?a=//b`)).status, 200)
  })

  it("where clients look for OAuth say that there is none, and what to do instead", async () => {
    const places = [
      ["GET", "/.well-known/oauth-protected-resource"],
      ["GET", "/.well-known/oauth-protected-resource/mcp/counter-server"],
      ["GET", "/.well-known/oauth-authorization-server"],
      ["GET", "/.well-known/openid-configuration"],
      ["GET", "/mcp/counter-server/.well-known/openid-configuration"],
      ["POST", "/register"]
    ] as const
    for (const [method, path] of places) {
      for (const [at, instead] of [[origin, "asks for no key"], [keyedOrigin, "Authorization: Bearer KEY"]] as const) {
        const response = await fetch(`${at}${path}`, { method })
        assert.deepStrictEqual(
          [path, response.status, response.headers.get("content-type")],
          [path, 404, "application/json"]
        )
        assert.match((await response.json()).error_description, new RegExp(`This gateway has no OAuth.*${instead}`))
      }
    }
  })

  it("that need a key say in WWW-Authenticate how to send one", async () => {
    for (const path of ["/mcp", "/mcp/counter-server", "/counter-server/mcp"]) {
      const response = await Kit.initialize(`${keyedOrigin}${path}`)
      assert.strictEqual(response.status, 401)
      assert.strictEqual(
        response.headers.get("www-authenticate"),
        "Bearer realm=\"effect-session-pool\", error_description=\"Send one of the gateway's keys as Authorization: Bearer KEY\""
      )
    }
  })
})
