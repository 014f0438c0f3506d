/** Answers nested deeper than the gateway parses. */
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Modern from "../kit/gateway/modern.ts"

describe("an answer nested deeper than 256 levels", () => {
  let gateway: Kit.Running
  beforeAll(async () => {
    const era = new URL("../fixtures/era-server.ts", import.meta.url).pathname
    gateway = await Kit.start({
      backends: { legacy: Kit.counter(), modern: { command: process.execPath, args: [era] } },
      requestTimeout: "Infinity"
    })
  })
  afterAll(() => gateway.stop())

  const clients = {
    legacy: async (url: string) =>
      Kit.answerOf(await Kit.post(url, await Kit.open(url), Kit.toolCall(7, "deep-answer"))),
    modern: async (url: string) => (await Modern.request(url, "tools/call", { name: "deep-answer" }, { id: 7 })).last
  }
  for (const [client, call] of Object.entries(clients)) {
    for (const server of ["legacy", "modern"]) {
      it(`of a ${server} server ends the call of a ${client} client at once, with an error that says so`, async () => {
        const { error, id } = await call(`${gateway.origin}/mcp/${server}`)
        assert.deepStrictEqual([id, error.message], [7, "The answer is nested deeper than 256 levels"])
      })
    }
  }

  const deep = "[".repeat(300) + "]".repeat(300)

  it("is told from anything else that is as deep, JSON or not", () => {
    for (const member of ["result", "error"]) {
      assert.include(JsonRpc.errorForTooDeep(`{"jsonrpc":"2.0","${member}":${deep},"id":"a"}`), "\"id\":\"a\"")
    }
    for (
      const text of [
        "[".repeat(300),
        deep,
        `{${deep}:1}`,
        `{"jsonrpc":"2.0","id":${deep},"result":1}`,
        `{"jsonrpc":"2.0","id":1,"result":${"[".repeat(300)}`,
        `{"jsonrpc":"2.0","id":1,"method":"x","params":${deep}}`,
        `{"jsonrpc":"2.0","method":"x","params":${deep}}`,
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":[]}"
      ]
    ) {
      assert.isUndefined(JsonRpc.errorForTooDeep(text), text)
    }
  })
})
