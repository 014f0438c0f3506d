/** The stderr of back ends: in the error of a failed start, and in the log. */
import { Effect, Logger } from "effect"
import { assert, describe, it } from "vitest"
import * as Masking from "../../src/gateway/settings/Masking.ts"
import type * as Settings from "../../src/gateway/settings/Settings.ts"
import * as Stderr from "../../src/gateway/transports/Stderr.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

// The parsed line of a log.
// oxlint-disable-next-line typescript/no-explicit-any
type Json = any

const bytes = (text: string) => new TextEncoder().encode(text)

/** The text in the error after these chunks. */
const reported = (secrets: ReadonlyArray<string>, ...chunks: ReadonlyArray<string>): string => {
  const stderr = Stderr.make(Masking.make(secrets), "debug")
  for (const chunk of chunks) stderr.push(bytes(chunk))
  return stderr.text()
}

describe("stderr in the error of a back end", () => {
  it("is cut to its beginning and end, with the number of lines left out", () => {
    const usage = Array.from({ length: 200 }, (_, i) => `  --option-${i}   an option that is described at length`)
    const text = reported([], `error: no such database\n${usage.join("\n")}\nsee the manual`)
    assert.match(text, /^error: no such database\n {2}--option-0 /)
    assert.match(text, /--option-199 [^\n]*\nsee the manual$/)
    const [, count] = /\n\[(\d+) lines left out\]\n/.exec(text) ?? []
    assert.strictEqual(text.split("\n").length + Number(count) - 1, usage.length + 2)
    assert.isBelow(text.length, 5000)
  })

  it("contains no part of a secret at any cut of a line or of the text", () => {
    const secret = "0123456789-abcdefghijklmnopqrstuvwxyz-ABCDEF"
    const parts = [...secret.matchAll(/(?=(.{6}))/g)].map(([, part = ""]) => part)
    for (let before = 900; before < 1010; before++) {
      for (const line of [`${"#".repeat(before)}${secret} and more`, `${"#".repeat(before + 2000)}${secret}`]) {
        const text = reported([secret], `${line}\n`.repeat(6))
        for (const part of parts) assert.notInclude(text, part, `after ${before} characters`)
      }
    }
  })

  it("contains no part of a secret in two chunks, or in a line without its end", () => {
    assert.strictEqual(reported(["a-secret-key"], "the key is a-sec", "ret-key"), "the key is ***")
  })

  it("contains neither colours nor other control characters", () => {
    const text = "\u001b[31mError\u001b[0m:\u0007 \u001b]0;title\u0007a-\u001b[1msecret-key\u009b2J\r\n\tthere"
    assert.strictEqual(reported(["a-secret-key"], text), "Error: ***\n\tthere")
  })

  it("keeps characters of several bytes that chunks split", () => {
    const stderr = Stderr.make((text) => text, "debug")
    for (const byte of bytes("schön 🎉")) stderr.push(Uint8Array.of(byte))
    assert.strictEqual(stderr.text(), "schön 🎉")
  })

  it("stays short after 20 MB and 20,000 lines", () => {
    const stderr = Stderr.make((text) => text, "debug")
    for (let i = 0; i < 2000; i++) stderr.push(bytes("x".repeat(10_000)))
    for (let i = 0; i < 20_000; i++) stderr.push(bytes("\nline"))
    assert.isBelow(stderr.text().length, 5000)
  })
})

describe("stderr of a running back end", async () => {
  const secret = "a-secret-of-the-environment"
  const quiet = { ...Kit.counter(), env: { SECRET: secret } }
  const mcpServers = { quiet, loud: { ...quiet, stderrLevel: "warn", spares: 1 } }
  const { origin, output } = await Serving.command(["--config", Serving.file("config.json", { mcpServers })])
  const url = `${origin}/mcp/loud`

  /** The records of a session with its stderr. */
  const logged = (session: string): ReadonlyArray<Json> =>
    output().split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line))
      .filter(({ annotations, message }) =>
        annotations.session === session.slice(0, 8) && message.startsWith("stderr:")
      )

  it("is logged with its back end and session, masked and without control characters, also for a process that was a spare", async () => {
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "complain", { text: `\u001b[31mno ${secret}\u001b[0m\n` })
    await Kit.eventually("it is logged", () => logged(session).length > 0)
    const [{ annotations, level, message }] = logged(session)
    assert.deepStrictEqual([message, level, annotations.backend], ["stderr: no ***", "WARN", "loud"])
  })

  it("is logged by line up to a limit per second, and further lines are counted", async () => {
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "complain", { text: "again\n", count: 500 })
    const countOf = (message: string) =>
      message === "stderr: again" ? 1 : Number(/(\d+) more lines/.exec(message)?.[1] ?? 0)
    const total = () => logged(session).reduce((sum, { message }) => sum + countOf(message), 0)
    await Kit.eventually("all are logged or counted", () => total() === 500)
    assert.isBelow(logged(session).length, 100)
  })

  it("is logged to the last line when its process ends", async () => {
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "complain", { text: "first\n" })
    const crash = Kit.toolCall(1, "complain", { text: "out of memory", crash: true })
    await (await Kit.post(url, session, crash)).text()
    const isLogged = () => logged(session).some(({ message }) => message === "stderr: out of memory")
    await Kit.eventually("it is logged", isLogged)
  })

  it("is not logged at the level of the log by default", async () => {
    for (const backend of ["quiet", "loud"]) {
      const at = `${origin}/mcp/${backend}`
      await Kit.toolText(at, await Kit.open(at), "complain", { text: `a line of ${backend}\n` })
    }
    await Kit.eventually("the later line is logged", () => output().includes("a line of loud"))
    assert.notInclude(output(), "a line of quiet")
  })
})

describe("stderr before the process has a session", () => {
  const texts: Array<string> = []
  const logger = Logger.layer([Logger.make(({ message }) => void texts.push(String(message)))])
  let masked = 0
  const ofLevel = async (level: Settings.BackendSettings["stderrLevel"]) => {
    const stderr = Stderr.make((text) => {
      masked++
      return text
    }, level)
    stderr.push(bytes(`${level}\n`))
    await new Promise((resolve) => stderr.logWith((log) => resolve(Effect.runPromise(Effect.provide(log, logger)))))
    return stderr
  }

  it("is logged once the process has one, and masked only if it is reported or its level is enabled", async () => {
    const debug = await ofLevel("debug")
    assert.deepStrictEqual([masked, texts], [0, []])
    assert.strictEqual(debug.text(), "debug")
    await ofLevel("info")
    assert.deepStrictEqual([masked, texts], [2, ["stderr: info"]])
  })
})
