/** A program's own transport beside the gateway's own. */
import { Deferred, Effect, Exit, Schema } from "effect"
import { assert, describe, it } from "vitest"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

/** Answers `initialize`, and each other request with its params. `parrot` is the name of the server. */
const makeEcho = ({ parrot }: { readonly parrot: string }): Gateway.Transport => {
  let to: Gateway.Receiver | undefined
  const serverInfo = { name: parrot, version: "1" }
  const offer: Gateway.Transport["offer"] = (message) => {
    if (message._tag !== "Request" || to === undefined) return true
    const { id, method, params } = message
    const welcome = { protocolVersion: "2025-06-18", capabilities: { tools: {} }, serverInfo }
    const result = method === "initialize" ? welcome : params
    return Gateway.deliver(to, JSON.stringify({ jsonrpc: "2.0", id, result }))
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

describe("a custom transport", async () => {
  const { origin } = await Serving.gateway({
    transports: { echo },
    backends: { a: { parrot: "Polly" }, b: Kit.counter() }
  })

  it("a custom transport answers a client on HTTP", async () => {
    const url = `${origin}/mcp/a`
    const { result } = await Kit.answerOf(await Kit.initialize(url))
    assert.strictEqual(result.serverInfo.name, "Polly")
    const answer = await Kit.post(url, await Kit.open(url), Kit.toolCall(1, "speak", { word: "hi" }))
    assert.deepStrictEqual((await Kit.answerOf(answer)).result.arguments, { word: "hi" })
  })

  it("a custom transport leaves the gateway's own transports unchanged", async () => {
    const url = `${origin}/mcp/b`
    assert.strictEqual(await Kit.toolText(url, await Kit.open(url), "count"), "1")
  })

  it("/sessions lists the kind of a custom back end", async () => {
    const { backends } = await Serving.overview(origin)
    assert.deepStrictEqual(backends.map(({ kind }) => kind), ["echo", "stdio"])
  })

  it("checks the entries of a custom transport like any other", () => {
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
