/** Callers that a trusted proxy names in a header. */
import { assert, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const backends = { counter: Kit.counter() }
const user = (name: string) => ({ "x-forwarded-user": name })
const key = "a-key-of-a-client-0123456789"

it("a trusted proxy names the caller, and sessions belong to this caller", async () => {
  const { url } = await Serving.gateway({
    backends,
    trustedProxies: ["10.0.0.0/8", "::1", "127.0.0.0/24"],
    proxyHeader: "X-Forwarded-User"
  })
  const session = await Kit.open(url, {}, user("ada@example.org"))
  const count = (name: string) => Kit.post(url, session, Kit.toolCall(1, "count"), user(name))
  assert.strictEqual((await Kit.answerOf(await count("ada@example.org"))).result.content[0].text, "1")
  assert.strictEqual((await count("eve@example.org")).status, 404)
  const refused = await Kit.initialize(url)
  assert.deepStrictEqual([refused.status, refused.headers.has("www-authenticate")], [401, true])
  assert.strictEqual((await Kit.initialize(url, user(""))).status, 401)
})

it("the header counts for nothing in a request from another address, whatever addresses the request claims", async () => {
  const settings = { trustedProxies: ["127.0.0.2", "127.0.1.0/24", "10.0.0.1"], proxyHeader: "X-Forwarded-User" }
  const { url } = await Serving.gateway({ backends, ...settings, keys: [key] })
  const claims = ["x-forwarded-for", "x-real-ip", "forwarded"].map((name) => [name, "127.0.0.2"])
  const headers = { ...user("ada"), ...Object.fromEntries(claims) }
  assert.strictEqual((await Kit.initialize(url, headers)).status, 401)
  // A session of the key, and not of ada.
  const session = await Kit.open(url, {}, { ...headers, ...Kit.bearer(key) })
  const answer = await Kit.post(url, session, Kit.toolCall(1, "count"), Kit.bearer(key))
  assert.strictEqual(answer.status, 200)
})
