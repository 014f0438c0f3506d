/** A program's own authenticator in place of the gateway's keys. */
import { Effect } from "effect"
import { HttpServerResponse } from "effect/http"
import { assert, describe, it } from "vitest"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const metadata = "/.well-known/oauth-protected-resource"

const challenge = new Gateway.Challenge({ status: 401, message: "Say who you are", wwwAuthenticate: "Header x-user" })

const byHeader: Gateway.Authenticator = {
  authenticate: ({ headers }) =>
    headers["x-user"] === undefined ? Effect.fail(challenge) : Effect.succeed({ id: headers["x-user"], claims: {} }),
  routes: [{ path: metadata, handler: Effect.succeed(HttpServerResponse.text("the metadata")) }]
}

describe("a custom authenticator", async () => {
  const options = { backends: { a: Kit.counter() }, maxSessions: 4 }
  const { origin, url } = await Serving.gateway(options, undefined, byHeader)

  const open = (user: string) => Kit.open(url, {}, { "x-user": user })
  const count = (user: string, session: string) => Kit.post(url, session, Kit.toolCall(1, "count"), { "x-user": user })

  it("refuses a request with the authenticator's status, message and WWW-Authenticate", async () => {
    const response = await Kit.initialize(url)
    assert.deepStrictEqual([response.status, response.headers.get("www-authenticate")], [401, "Header x-user"])
    assert.strictEqual((await response.json()).error.message, "Say who you are")
  })

  it("hides the session of one principal from another principal", async () => {
    const session = await open("ada@example.org")
    const eve = await count("eve@example.org", session)
    assert.deepStrictEqual([eve.status, (await eve.json()).error.code], [404, -32001])
    const answer = await (await count("ada@example.org", session)).json()
    assert.strictEqual(answer.result.content[0].text, "1")
  })

  it("limits each principal to half of maxSessions even without keys in the settings", async () => {
    const [first, other] = [await open("grace"), await open("alan")]
    for (const session of [await open("grace"), await open("grace")]) {
      assert.strictEqual((await count("grace", session)).status, 200)
    }
    assert.strictEqual((await count("grace", first)).status, 404)
    assert.strictEqual((await count("alan", other)).status, 200)
  })

  it("serves the authenticator's routes, and keeps the operators' routes closed without adminKeys", async () => {
    assert.strictEqual(await (await fetch(`${origin}${metadata}`)).text(), "the metadata")
    assert.strictEqual((await fetch(`${origin}/sessions`)).status, 403)
  })
})
