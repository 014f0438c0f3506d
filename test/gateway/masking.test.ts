/** Masking of the secrets of a back end's entry: each form of a secret, and each place where one could be shown. */
import { assert, describe, it } from "vitest"
import * as Masking from "../../src/gateway/settings/Masking.ts"
import * as Collector from "../kit/gateway/collector.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

describe("masking", () => {
  it("hides a secret that is percent-encoded, escaped in JSON, in base64, or several of these", () => {
    const secret = "p@ss w0rd/\"quoted\"\\back+ü=="
    const mask = Masking.make([secret])
    const json = JSON.stringify(secret)
    const base64 = (text: string) => Buffer.from(text).toString("base64")
    const uri = encodeURIComponent(secret)
    const form = new URLSearchParams([["", secret]]).toString().slice(1)
    const percent = [uri, uri.toLowerCase(), encodeURI(secret), encodeURIComponent(uri), form]
    const escaped = json.replaceAll("/", "\\/").replace("ü", "\\u00FC")
    const inJson = [json.slice(1, -1), escaped.slice(1, -1), JSON.stringify(json).slice(3, -3)]
    for (const text of [secret, ...percent, ...inJson, base64(secret), Buffer.from(secret).toString("base64url")]) {
      assert.strictEqual(mask(`before ${text} behind`), "before *** behind", text)
    }
    // As in `Authorization: Basic`: the length of the text before the secret decides how base64 splits its bytes.
    for (const user of ["", "a", "ab", "abc"]) {
      const text = mask(`${base64(`${user}:${secret}:end`)} ${encodeURIComponent(base64(`${user}:${secret}`))}`)
      assert.match(text, /^.{0,6}\*{3}.{4,8} .{0,6}\*{3}(%3D){0,2}$/, user)
    }
  })

  it("hides each line of a secret, a part of a long secret, and the password of a URL", () => {
    const lines = Array.from({ length: 20 }, (_, i) => `MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw${i}`)
    assert.strictEqual(Masking.make([lines.join("\n")])(`key: ${lines[7]}`), "key: ***")
    const long = lines.join("")
    assert.strictEqual(Masking.make([long])(`key: ${long}`), "key: ***")
    assert.match(Masking.make([long])(`key: ${long.slice(0, 500)}`), /^key: \*{3}.{0,200}$/)
    assert.strictEqual(Masking.make(["postgres://me:pass%21word@db/x"])("pass!word, pass%21word"), "***, ***")
    assert.strictEqual(Masking.make(["Bearer the-token"])("it is the-token"), "it is ***")
  })

  it("does not hang at a text that begins like a secret with many escaped quotes", () => {
    const quotes = "\\\"".repeat(60)
    const json = JSON.stringify(JSON.stringify(quotes)).slice(3, -3)
    const text = `${json}${"x".repeat(2000)}`
    // With three ways to read each of them, the search would take 3^60 steps.
    assert.strictEqual(Masking.make([`${quotes}y`])(text), text)
  })

  it("hides a part of a secret of 40 KiB of punctuation", () => {
    const secret = JSON.stringify(Array.from({ length: 9000 }, (_, i) => ({ [i]: "/+=" }))).slice(0, 40 * 1024)
    assert.match(Masking.make([secret])(`before ${secret.slice(0, 2000)}`), /^before \*{3}.{0,200}$/)
  })

  it("hides each form of a secret with backslashes, and of a long one whose pieces overlap or begin in a run of backslashes", () => {
    const long = ["0123456789", "abc\\\\\\\"", `${"\\".repeat(100)}x`].map((part) => `${part.repeat(100)}.`)
    for (const secret of [...long, "a\\\\\"b\\,c\\d e\\"]) {
      const mask = Masking.make([secret])
      const json = JSON.stringify(secret).slice(1, -1)
      const twice = JSON.stringify(json).slice(1, -1)
      for (const text of [secret, json, twice, encodeURIComponent(secret)]) {
        assert.strictEqual(mask(`before ${text} behind`), "before *** behind", secret)
      }
      const base64 = Buffer.from(`ab${secret}`).toString("base64url")
      assert.match(mask(`before ${base64} behind`), /^before .{0,4}\*{3} behind$/, secret)
    }
  })

  it("keeps a row of stars in a text", () => {
    assert.strictEqual(Masking.make(["a-secret-key"])("******* a-secret-keya-secret-key"), "******* ***")
  })

  it("hides a password in a URL, and does not hang at a long word", () => {
    const mask = Masking.make([])
    assert.strictEqual(mask("at%20https://me:pw@host/a"), "at%20https://***@host/a")
    const text = `https://host:80/a@b and a://b, c:d@e ${"a1".repeat(1_000_000)}`
    assert.strictEqual(mask(text), text)
  })

  it("hides an expanded variable of any part of an entry in answers, lists, logs and traces", async () => {
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
    const list = JSON.stringify(await Serving.overview(origin))
    child.kill("SIGTERM")
    await exit
    assert.include(answers.join(), "usage: *** x ***")
    assert.include(collector.bodies("/v1/traces").join(), "http.client POST")
    const seen = { answers: answers.join(), list, log: output(), collected: collector.bodies().join() }
    for (const [where, text] of Object.entries(seen)) {
      for (const name of names) assert.notInclude(text, secret(name.toLowerCase()), where)
    }
  })
})

describe("control characters", () => {
  it("are removed from a text, with marks that change its direction, but line breaks and tabs stay", () => {
    const text = "\u001b[31mred\u001b[0m \u001b]0;title\u0007a\u009b2Jb\u0000\u007f\u202ec\td\ne\u001b[1A"
    assert.strictEqual(Masking.plain(text), "red abc\td\ne")
  })

  it("are removed from the errors of the command", async () => {
    const { exit, output } = await runInProcess(["--config", "\u001b[2Jnone\u009b.json"])
    assert.strictEqual(exit, 1)
    assert.match(output, /^The configuration \S*none\.json cannot be read/)
  })
})
