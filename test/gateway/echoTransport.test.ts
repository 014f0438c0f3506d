/** A program's own kind of back ends beside the gateway's own. */
import { Deferred, Effect, Exit, Schema } from "effect"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Kit from "../kit/gateway/gateway.ts"

/** Answers `initialize`, and each other request with its params. `parrot` is the name of the server. */
const makeEcho = ({ parrot }: { readonly parrot: string }): Gateway.Transport => {
  let to: Gateway.Receiver | undefined
  const serverInfo = { name: parrot, version: "1" }
  const offer: Gateway.Transport["offer"] = (message) => {
    if (message._tag !== "Request" || to === undefined) return true
    const { id, method, params } = message
    const welcome = { protocolVersion: "2025-06-18", capabilities: { tools: {} }, serverInfo }
    return Gateway.deliver(
      to,
      JSON.stringify({ jsonrpc: "2.0", id, result: method === "initialize" ? welcome : params })
    )
  }
  return {
    pid: undefined,
    attach: (receiver) =>
      Effect.sync(() => {
        to = receiver
      }),
    offer,
    send: (message) => Effect.sync(() => offer(message)),
    ended: Deferred.makeUnsafe(),
    failed: (reason) => new Gateway.BackendFailed({ reason, stderr: "" })
  }
}

const echo = Gateway.transport({
  recognisedBy: "parrot",
  entry: Schema.Struct({ parrot: Schema.NonEmptyString.annotate({ message: "must be a name" }) }),
  startsServer: false,
  make: (entry) => Effect.succeed(makeEcho(entry))
})

describe("a kind of back ends that a program adds", () => {
  let gateway: Kit.Running
  beforeAll(async () => {
    gateway = await Kit.start({ transports: { echo }, backends: { a: { parrot: "Polly" }, b: Kit.counter() } })
  })
  afterAll(() => gateway.stop())

  it("answers a client on HTTP", async () => {
    const url = `${gateway.origin}/mcp/a`
    const { result } = await Kit.answerOf(await Kit.initialize(url))
    assert.strictEqual(result.serverInfo.name, "Polly")
    const answer = await Kit.answerOf(
      await Kit.post(url, await Kit.open(url), Kit.toolCall(1, "speak", { word: "hi" }))
    )
    assert.deepStrictEqual(answer.result.arguments, { word: "hi" })
  })

  it("leaves the gateway's own kinds as they are", async () => {
    const url = `${gateway.origin}/mcp/b`
    assert.strictEqual(await Kit.toolText(url, await Kit.open(url), "count"), "1")
  })

  it("is named in the list of back ends", async () => {
    const { backends } = await (await fetch(`${gateway.origin}/sessions`)).json()
    assert.deepStrictEqual(backends.map(({ kind }: { readonly kind: string }) => kind), ["echo", "stdio"])
  })

  it("has its entries checked like any other", () => {
    const checked = Gateway.config({ transports: { echo }, backends: { a: { parrot: "", spares: 1 }, c: {} } })
    assert.deepStrictEqual(
      Effect.runSyncExit(Effect.mapError(checked, ({ faults }) => faults)),
      Exit.fail([
        "backends.a.spares: is not for a back end with a parrot; remove it",
        "backends.a.parrot: must be a name",
        "backends.c: must have a command or a url or a parrot"
      ])
    )
  })
})
