/** What a back end writes on stderr: what of it is told when it fails, and what of it is logged. */
import { Effect, Logger } from "effect"
import { assert, describe, it } from "vitest"
import * as Masking from "../../src/gateway/settings/Masking.ts"
import type * as Settings from "../../src/gateway/settings/Settings.ts"
import * as Stderr from "../../src/gateway/transports/Stderr.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const bytes = (text: string) => new TextEncoder().encode(text)

/** What is told of a text that comes in chunks. */
const told = (secrets: ReadonlyArray<string>, ...chunks: ReadonlyArray<string>): string => {
  const stderr = Stderr.make(Masking.make(secrets), "debug")
  for (const chunk of chunks) stderr.push(bytes(chunk))
  return stderr.text()
}

describe("what is told of the stderr of a back end that fails", () => {
  it("has the beginning and the end of a long one, and how much is left out between them", () => {
    const usage = Array.from({ length: 200 }, (_, i) => `  --option-${i}   an option that is described at length`)
    const text = told([], `error: no such database\n${usage.join("\n")}\nsee the manual`)
    assert.match(text, /^error: no such database\n {2}--option-0 /)
    assert.match(text, /--option-199 [^\n]*\nsee the manual$/)
    const [, count] = /\n\[(\d+) lines left out\]\n/.exec(text) ?? []
    assert.strictEqual(text.split("\n").length + Number(count) - 1, usage.length + 2)
    assert.isBelow(text.length, 5000)
  })

  it("has no part of a secret, wherever a line or the text is cut", () => {
    const secret = "0123456789-abcdefghijklmnopqrstuvwxyz-ABCDEF"
    const parts = [...secret.matchAll(/(?=(.{6}))/g)].map(([, part = ""]) => part)
    for (let before = 900; before < 1010; before++) {
      for (const line of [`${"#".repeat(before)}${secret} and more`, `${"#".repeat(before + 2000)}${secret}`]) {
        const text = told([secret], `${line}\n`.repeat(6))
        for (const part of parts) assert.notInclude(text, part, `after ${before} characters`)
      }
    }
  })

  it("has no part of a secret that comes in two chunks, or is still without the end of its line", () => {
    assert.strictEqual(told(["a-secret-key"], "the key is a-sec", "ret-key"), "the key is ***")
  })

  it("has neither colours nor other control characters", () => {
    assert.strictEqual(
      told(
        ["a-secret-key"],
        "\u001b[31mError\u001b[0m:\u0007 \u001b]0;title\u0007a-\u001b[1msecret-key\u009b2J\r\n\tthere"
      ),
      "Error: ***\n\tthere"
    )
  })

  it("keeps what a character of several bytes is, wherever a chunk ends", () => {
    const stderr = Stderr.make((text) => text, "debug")
    for (const byte of bytes("schön 🎉")) stderr.push(Uint8Array.of(byte))
    assert.strictEqual(stderr.text(), "schön 🎉")
  })

  it("stays small, however much is written", () => {
    const stderr = Stderr.make((text) => text, "debug")
    for (let i = 0; i < 2000; i++) stderr.push(bytes("x".repeat(10_000)))
    for (let i = 0; i < 20_000; i++) stderr.push(bytes("\nline"))
    assert.isBelow(stderr.text().length, 5000)
  })
})

describe("the stderr of a back end that runs", async () => {
  const secret = "a-secret-of-the-environment"
  const quiet = { ...Kit.counter(), env: { SECRET: secret } }
  const mcpServers = { quiet, loud: { ...quiet, stderrLevel: "warn", spares: 1 } }
  const { origin, output } = await Serving.command(["--config", Serving.file("config.json", { mcpServers })])
  const url = `${origin}/mcp/loud`

  const records = () => output().split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line))
  const ofSession = (session: string) =>
    records().filter(({ annotations }) => annotations.session === session.slice(0, 8))

  it("is logged with its back end and session, masked and without control characters, also of a process that was a spare", async () => {
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "complain", { text: `\u001b[31mno ${secret}\u001b[0m\n` })
    await Kit.eventually("it is logged", () => ofSession(session).some(({ message }) => message.startsWith("stderr:")))
    const [record] = ofSession(session).filter(({ message }) => message.startsWith("stderr:"))
    assert.strictEqual(record.message, "stderr: no ***")
    assert.strictEqual(record.level, "WARN")
    assert.strictEqual(record.annotations.backend, "loud")
  })

  it("is logged line by line up to a number in a second, and the rest is counted", async () => {
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "complain", { text: "again\n", count: 500 })
    const lines = () => ofSession(session).map(({ message }) => message).filter((each) => each.startsWith("stderr:"))
    const total = () =>
      lines().reduce(
        (sum, line) => sum + Number(/(\d+) more lines/.exec(line)?.[1] ?? (line === "stderr: again" ? 1 : 0)),
        0
      )
    await Kit.eventually("all are logged or counted", () => total() === 500)
    assert.isBelow(lines().length, 100)
  })

  it("is logged to the last line when its process ends, and told as the reason", async () => {
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "complain", { text: "first\n" })
    const crash = Kit.toolCall(1, "complain", { text: "out of memory", crash: true })
    await (await Kit.post(url, session, crash)).text()
    const isLogged = () => ofSession(session).some(({ message }) => message === "stderr: out of memory")
    await Kit.eventually("it is logged", isLogged)
  })

  it("is not logged at the level of the log by default", async () => {
    for (const [backend, who] of [["quiet", "nobody"], ["loud", "somebody"]] as const) {
      const at = `${origin}/mcp/${backend}`
      await Kit.toolText(at, await Kit.open(at), "complain", { text: `${who} hears\n` })
    }
    await Kit.eventually("the later one is logged", () => output().includes("somebody hears"))
    assert.notInclude(output(), "nobody hears")
  })
})

it("the lines of a process that come before anybody has its session are logged with it", async () => {
  const logged: Array<string> = []
  const stderr = Stderr.make((text) => text, "info")
  stderr.push(bytes("starting\n"))
  const logger = Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])
  await Effect.runPromise(
    Effect.gen(function*() {
      const run = Effect.runForkWith(yield* Effect.context<never>())
      stderr.logWith(run)
      yield* Effect.promise(() => Kit.eventually("it is logged", () => logged.length > 0))
    }).pipe(Effect.provide(logger))
  )
  assert.deepStrictEqual(logged, ["stderr: starting"])
})

it("a line is masked only when it is told, or logged at a level that is enabled", async () => {
  let masked = 0
  const logged: Array<string> = []
  const logger = Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])
  const ofLevel = async (level: Settings.BackendSettings["stderrLevel"]) => {
    const stderr = Stderr.make((text) => {
      masked++
      return text
    }, level)
    stderr.push(bytes(`${level}\n`))
    await new Promise((resolve) => stderr.logWith((log) => resolve(Effect.runPromise(Effect.provide(log, logger)))))
    return { stderr, masked }
  }
  const debug = await ofLevel("debug")
  assert.deepStrictEqual([debug.masked, logged], [0, []])
  assert.strictEqual(debug.stderr.text(), "debug")
  const info = await ofLevel("info")
  assert.deepStrictEqual([info.masked, logged], [2, ["stderr: info"]])
})
