/** Keys of clients with and without names, and the header X-API-Key. */
import { assert, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const [unnamed, old, renewed, other] = [
  "unnamed-key-0123456789",
  "old-key-0123456789",
  "new-key-0123456789",
  "other-key-01234"
]
const admin = "operators-key-0123456789"

describe("named keys", async () => {
  const { origin, url } = await Serving.gateway({
    backends: { counter: Kit.counter() },
    keys: [unnamed, `ci.bot_1:${old}`, `ci.bot_1: ${renewed}`, `ada:${other}`],
    adminKeys: [`ops:${admin}`]
  })
  const count = async (session: string, headers: Record<string, string>) => {
    const response = await Kit.post(url, session, Kit.toolCall(1, "count"), headers)
    return response.status === 200 ? (await Kit.answerOf(response)).result.content[0].text : response.status
  }

  it("a session goes on with another key of the same name, and is hidden from every other name", async () => {
    const session = await Kit.open(url, {}, Kit.bearer(old))
    assert.strictEqual(await count(session, Kit.bearer(renewed)), "1")
    for (const key of [other, unnamed]) assert.strictEqual(await count(session, Kit.bearer(key)), 404)
  })

  it("operators see the name of a key, and never the key", async () => {
    await Kit.open(url, {}, Kit.bearer(other))
    const { sessions } = await Serving.overview(origin, Kit.bearer(admin))
    assert.include(sessions.map(({ principal }) => principal), "ada")
    for (const key of [unnamed, old, renewed, other]) assert.notInclude(JSON.stringify(sessions), key)
  })

  it("clients send a key without its name, as a bearer token or as X-API-Key", async () => {
    const headers = [Kit.bearer(other), { "x-api-key": other }, { ...Kit.bearer("wrong"), "x-api-key": other }]
    for (const each of headers) assert.strictEqual((await Kit.initialize(url, each)).status, 200)
    const wrong = [Kit.bearer(`ada:${other}`), Kit.bearer("ada"), { "x-api-key": `ada:${other}` }, { "x-api-key": "" }]
    for (const each of wrong) {
      const { headers, status } = await Kit.initialize(url, each)
      assert.deepStrictEqual([status, headers.get("www-authenticate")?.slice(0, 13)], [401, "Bearer realm="])
    }
    const { status } = await fetch(`${origin}/sessions`, { headers: { "x-api-key": admin } })
    assert.strictEqual(status, 200)
  })
})
