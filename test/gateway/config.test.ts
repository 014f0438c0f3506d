/** What a configuration means where it is odd: what JSON, URLs and objects allow beside what people write. */
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect } from "effect"
import * as Backends from "../../src/gateway/backends/Backends.ts"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Config from "../../src/gateway/settings/Config.ts"

const load = (servers: unknown, gateway: unknown = {}) =>
  Config.load({
    flags: {},
    environment: { HOST: "example.org" },
    file: { name: "file.json", text: JSON.stringify({ mcpServers: servers, gateway }) },
    entries: {}
  })

const faults = (read: ReturnType<typeof load>) =>
  read instanceof Config.InvalidConfig ? read.faults.map((fault) => fault.split(": ")[0]) : []

describe("a configuration", () => {
  it("a type that is no text is refused like any other that is not known, however it is nested", () => {
    const url = "http://127.0.0.1:1/mcp"
    const text = (type: string) => `{"mcpServers":{"a":{"url":"${url}","type":${type}}}}`
    for (const type of ["{\"toString\":1}", "[\"http\"]", "[".repeat(20_000) + "]".repeat(20_000)]) {
      const file = { name: "file.json", text: text(type) }
      const read = Config.load({ flags: {}, environment: {}, file, entries: {} })
      assert.deepStrictEqual(faults(read), ["mcpServers.a.type"])
    }
  })

  it("the name of a variable is no name of what objects inherit", () => {
    const read = load({ a: { command: "run-${constructor}", args: ["${__proto__}", "${toString:-x}", "${HOST}"] } })
    assert.deepStrictEqual(faults(read), ["mcpServers.a.command", "mcpServers.a.args[0]"])
  })

  it("credentials of a URL that are not percent-encoded stand for themselves", () => {
    const read = load({ a: { url: "http://me:100%@example.org/mcp" } })
    assert.notInstanceOf(read, Config.InvalidConfig)
    const backend = read instanceof Config.InvalidConfig ? undefined : read.backends.get("a")
    assert.strictEqual(backend?.mask("with 100% of it"), "with *** of it")
    assert.deepStrictEqual([Backends.percentDecoded("%41%"), Backends.percentDecoded("%41")], ["%41%", "A"])
  })

  it("a duration in a file is a text; in a program it is whatever Effect takes for one", () => {
    for (const value of [5, true, null, [1, 0], { seconds: 1 }]) {
      assert.deepStrictEqual(faults(load({ a: { command: "x" } }, { requestTimeout: value })), [
        "gateway.requestTimeout"
      ])
    }
    for (
      const requestTimeout of [1000, 1_000_000_000n, [1, 0], { seconds: 1 }, "1 second", Duration.seconds(1)] as const
    ) {
      const { settings } = Effect.runSync(Gateway.config({ backends: { a: { command: "x" } }, requestTimeout }))
      assert.strictEqual(Duration.toMillis(settings.requestTimeout), 1000)
    }
  })

  it("a name in a fault is on one line, whatever is in it", () => {
    const { message } = Effect.runSync(
      Effect.flip(Gateway.config({ backends: { "a\n\u001b[2J\u007f\u009b\u202e": { command: "x" } } }))
    )
    assert.deepStrictEqual(message.split("\n").length, 2)
    assert.include(message, "backends.a\\n\\u001b[2J\\u007f\\u009b\\u202e: ")
  })
})
