/** Secrets of a back end's entry in what people see: each form of one is hidden, and each place where one could come out. */
import { assert, describe, it } from "vitest"
import * as Masking from "../../src/gateway/settings/Masking.ts"
import * as Collector from "../kit/gateway/collector.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

describe("a secret", () => {
  it("is hidden however it is encoded: percent-encoded, escaped in JSON, in base64, and several of these", () => {
    const secret = "p@ss w0rd/\"quoted\"\\back+ü=="
    const mask = Masking.make([secret])
    const json = JSON.stringify(secret)
    const base64 = (text: string) => Buffer.from(text).toString("base64")
    for (
      const text of [
        secret,
        encodeURIComponent(secret),
        encodeURIComponent(secret).toLowerCase(),
        encodeURI(secret),
        new URLSearchParams([["", secret]]).toString().slice(1),
        encodeURIComponent(encodeURIComponent(secret)),
        json.slice(1, -1),
        json.replaceAll("/", "\\/").replace("ü", "\\u00FC").slice(1, -1),
        JSON.stringify(json).slice(3, -3),
        base64(secret),
        Buffer.from(secret).toString("base64url")
      ]
    ) {
      assert.strictEqual(mask(`before ${text} behind`), "before *** behind", text)
    }
    // As in `Authorization: Basic`: what stands before it decides how its bytes are spread.
    for (const user of ["", "a", "ab", "abc"]) {
      const text = mask(`${base64(`${user}:${secret}:end`)} ${encodeURIComponent(base64(`${user}:${secret}`))}`)
      assert.match(text, /^.{0,6}\*{3}.{4,8} .{0,6}\*{3}(%3D){0,2}$/, user)
    }
  })

  it("is hidden in each of its lines, in a long value also where only a part of it stands, and as the password of a URL", () => {
    const lines = Array.from({ length: 20 }, (_, i) => `MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw${i}`)
    assert.strictEqual(Masking.make([lines.join("\n")])(`key: ${lines[7]}`), "key: ***")
    const long = lines.join("")
    assert.strictEqual(Masking.make([long])(`key: ${long}`), "key: ***")
    assert.match(Masking.make([long])(`key: ${long.slice(0, 500)}`), /^key: \*{3}.{0,200}$/)
    assert.strictEqual(Masking.make(["postgres://me:pass%21word@db/x"])("pass!word, pass%21word"), "***, ***")
    assert.strictEqual(Masking.make(["Bearer the-token"])("it is the-token"), "it is ***")
  })

  it("a secret with runs of backslashes is hidden in each form", () => {
    const secret = "a\\\\\"b\\,c\\d e\\"
    const mask = Masking.make([secret])
    const json = JSON.stringify(secret).slice(1, -1)
    for (const text of [secret, json, JSON.stringify(json).slice(1, -1), encodeURIComponent(secret)]) {
      assert.strictEqual(mask(`before ${text} behind`), "before *** behind", text)
    }
  })

  it("a text that begins like a secret with many escaped quotes does not hang the search", () => {
    const quotes = "\\\"".repeat(60)
    const json = JSON.stringify(JSON.stringify(quotes)).slice(3, -3)
    const text = `${json}${"x".repeat(2000)}`
    // With three ways to read each of them, the search would take 3^60 steps.
    assert.strictEqual(Masking.make([`${quotes}y`])(text), text)
  })

  it("a part of a secret of 40 KiB of punctuation is hidden", () => {
    const secret = JSON.stringify(Array.from({ length: 9000 }, (_, i) => ({ [i]: "/+=" }))).slice(0, 40 * 1024)
    assert.match(Masking.make([secret])(`before ${secret.slice(0, 2000)}`), /^before \*{3}.{0,200}$/)
  })

  it("a long secret is hidden in each form, also if its pieces overlap or begin within a run of backslashes", () => {
    for (const part of ["0123456789", "abc\\\\\\\"", `${"\\".repeat(100)}x`]) {
      const secret = `${part.repeat(100)}.`
      const mask = Masking.make([secret])
      const json = JSON.stringify(secret).slice(1, -1)
      for (const text of [secret, json, encodeURIComponent(secret), Buffer.from(`ab${secret}`).toString("base64url")]) {
        assert.match(mask(`before ${text} behind`), /^before .{0,4}\*{3} behind$/, part)
      }
    }
  })

  it("a row of stars in a text stays as it is", () => {
    assert.strictEqual(Masking.make(["a-secret-key"])("******* a-secret-keya-secret-key"), "******* ***")
  })

  it("a password is hidden in a URL, and a long word does not hang the search for URLs", () => {
    const mask = Masking.make([])
    assert.strictEqual(mask("at%20https://me:pw@host/a"), "at%20https://***@host/a")
    const text = `https://host:80/a@b and a://b, c:d@e ${"a1".repeat(1_000_000)}`
    assert.strictEqual(mask(text), text)
  })

  it("an expanded variable is in no answer, list, log or trace, wherever in an entry it stands", async () => {
    const secret = (name: string) => `${name}-is-a-secret`
    const names = ["PROGRAM", "ARGUMENT", "VALUE", "DIRECTORY", "PATH", "QUERY", "HEADER", "PASSWORD"]
    const variables = Object.fromEntries(names.map((name) => [`TEST_${name}`, secret(name.toLowerCase())]))
    const upstream = new URL(await Serving.upstream((response) => response.writeHead(500).end()))
    const collector = await Collector.start()
    const script = "echo \"usage: $0 $1 $SECRET\" >&2; exit 1"
    const url = `http://me:\${TEST_PASSWORD}@${upstream.host}/\${TEST_PATH}?key=\${TEST_QUERY}`
    const mcpServers = {
      missing: { command: "./${TEST_PROGRAM}" },
      elsewhere: { command: "sh", cwd: "/${TEST_DIRECTORY}" },
      broken: { command: "sh", args: ["-c", script, "${TEST_ARGUMENT}", "x"], env: { SECRET: "${TEST_VALUE}" } },
      remote: { url, headers: { "x-token": "${TEST_HEADER}" } },
      down: { url: url.replace(/:\d+/, ":1"), headers: { "x-token": "${TEST_HEADER}" } }
    }
    const { child, exit, origin, output } = await Serving.command(
      ["--log-level", "all", "--config", Serving.file("config.json", { mcpServers })],
      { ...variables, OTEL_EXPORTER_OTLP_ENDPOINT: collector.url }
    )
    const answers = await Promise.all(
      Object.keys(mcpServers).map(async (name) => {
        const response = await Kit.initialize(`${origin}/mcp/${name}`)
        return `${response.status} ${await response.text()}`
      })
    )
    assert.deepStrictEqual(answers.map((answer) => answer.slice(0, 3)), ["502", "502", "502", "502", "502"])
    const list = await (await fetch(`${origin}/sessions`)).text()
    child.kill("SIGTERM")
    await exit
    assert.include(answers.join(), "usage: *** x ***")
    assert.include(collector.bodies("/v1/traces").join(), "http.client POST")
    const seen = { answers: answers.join(), list, log: output(), collected: collector.bodies().join() }
    for (const [where, text] of Object.entries(seen)) {
      for (const name of names) assert.notInclude(text, secret(name.toLowerCase()), where)
    }
    collector.stop()
  })
})

describe("a terminal", () => {
  it("gets no control characters and nothing that turns the direction of a text, but line breaks and tabs", () => {
    const text = "\u001b[31mred\u001b[0m \u001b]0;title\u0007a\u009b2Jb\u0000\u007f\u202ec\td\ne\u001b[1A"
    assert.strictEqual(Masking.plain(text), "red abc\td\ne")
  })

  it("gets none in the errors of the command either", async () => {
    const { exit, output } = await runInProcess(["--config", "\u001b[2Jnone\u009b.json"])
    assert.strictEqual(exit, 1)
    assert.match(output, /^The configuration \S*none\.json cannot be read/)
  })
})
