/** Messages of back ends nested deeper than the gateway parses. */
import { assert, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Modern from "../kit/gateway/modern.ts"
import * as Serve from "../kit/gateway/serving.ts"

const { origin } = await Serve.gateway({
  backends: { legacy: Kit.counter(), modern: Kit.node("era-server.ts") },
  requestTimeout: "Infinity"
})
const url = `${origin}/mcp/legacy`

const legacy = async (url: string, tool = "deep-answer") =>
  Kit.answerOf(await Kit.post(url, await Kit.open(url), Kit.toolCall(7, tool)))
const modern = async (url: string) => (await Modern.request(url, "tools/call", { name: "deep-answer" }, { id: 7 })).last

it("an answer nested deeper than 256 levels ends its call at once, for clients and servers of both eras", async () => {
  const answers = ["legacy", "modern"].flatMap((server) =>
    [legacy, modern].map((call) => call(`${origin}/mcp/${server}`))
  )
  for (const { error, id } of await Promise.all([...answers, legacy(url, "deep-error")])) {
    assert.deepStrictEqual([id, error.message], [7, "The answer is nested deeper than 256 levels"])
  }
})

it("any other message nested deeper than 256 levels is skipped, and the answer after it arrives", async () => {
  const session = await Kit.open(url)
  const typeOf = async (count: number) => {
    const response = await Kit.post(url, session, Kit.toolCall(1, "deep", { count }))
    assert.include(await response.text(), "after depth")
    return response.headers.get("content-type")
  }
  // An answer that nothing precedes is JSON.
  assert.deepStrictEqual([await typeOf(256), await typeOf(257)], ["text/event-stream", "application/json"])
})
