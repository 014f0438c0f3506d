/** Security: keys, origins, hosts, floods, slow clients and secrets. */
import { Effect } from "effect"
import { readFileSync } from "node:fs"
import { get } from "node:https"
import { assert, describe, it } from "vitest"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Raw from "../kit/gateway/rawHttp.ts"
import * as Serve from "../kit/gateway/serving.ts"

const backends = { counter: Kit.counter() }
const key = Kit.bearer
const [ours, theirs, operators] = ["our-key-0123456789", "their-key-0123456789", "operators-key-0123456789"]

/** Opens a session with a key. */
const open = async (url: string, value: string): Promise<string> => {
  const { headers, status } = await Kit.initialize(url, key(value))
  return headers.get("mcp-session-id") ?? `status ${status}`
}
const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
const call = Kit.toolCall(1, "count")

describe("a gateway with keys", async () => {
  // Half of the sessions for each key.
  const keys = { keys: [ours, theirs], adminKeys: [operators] }
  const { origin, url } = await Serve.gateway({ backends, ...keys, maxSessions: 6 })

  it("answers 401 with WWW-Authenticate to a request without a key, or with a wrong, partial or misplaced one", async () => {
    const wrong = ["wrong", ours.slice(0, -1), `${ours}x`, "", operators].map(key)
    const forms = [ours, `Basic ${ours}`, "Bearer"].map((authorization) => ({ authorization }))
    const elsewhere = [{}, { "x-api-key": "wrong" }, { cookie: `authorization=Bearer ${ours}` }]
    const attempts: ReadonlyArray<object> = [...wrong, ...forms, ...elsewhere]
    for (const headers of attempts) {
      for (const method of ["POST", "GET", "DELETE"]) {
        const body = method === "POST" ? Kit.initializeBody : null
        const response = await fetch(url, { method, headers: { ...Kit.headers, ...headers }, body })
        assert.deepStrictEqual([headers, method, response.status], [headers, method, 401])
        assert.match(response.headers.get("www-authenticate") ?? "", /^Bearer realm=/)
        assert.notInclude(await response.text(), ours)
      }
    }
  })

  it("answers 404 to every request for a session of another key, and for every variant of its id", async () => {
    const session = await open(url, ours)
    const statuses = [
      await Kit.post(url, session, call, key(theirs)),
      await Kit.post(url, session, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}", key(theirs)),
      await Kit.listen(url, session, key(theirs)),
      await Kit.listen(url, session, { ...key(theirs), "last-event-id": "a-1-1" }),
      await fetch(url, { method: "DELETE", headers: { ...key(theirs), "mcp-session-id": session } })
    ].map(({ status }) => status)
    assert.deepStrictEqual(statuses, [404, 404, 404, 404, 404])
    assert.match(session, uuid)
    const like = [`${session}.`, `${session}/`, `../counter/${session}`, `${session}%00`, `${session.slice(0, -1)}0`]
    for (const guess of [...like, session.toUpperCase(), ` ${session} x`, "*", "__proto__", "x".repeat(5000)]) {
      const { status } = await Kit.post(url, guess, call, key(theirs))
      assert.deepStrictEqual([guess, status], [guess, 404])
    }
    assert.strictEqual((await Kit.answerOf(await Kit.post(url, session, call, key(ours)))).result.content[0].text, "1")
  })

  it("counts each wrong key for the alert, also on the operator's routes", async () => {
    const refused = async () => {
      const metrics = await Serve.scrape(origin, key(operators))
      return Number(/^mcp_gateway_refusals_total\{status="401"\} (\d+)$/m.exec(metrics)?.[1])
    }
    const before = await refused()
    for (const path of ["/sessions", "/metrics", "/mcp"]) await fetch(`${origin}${path}`, { headers: key("wrong") })
    assert.strictEqual(await refused(), before + 3)
  })

  it("limits a key to half of the sessions by default, and evicts only sessions of the same key", async () => {
    const mine = await open(url, theirs)
    for (let i = 0; i < 4; i++) assert.match(await open(url, ours), uuid)
    const { sessions } = await Serve.overview(origin, key(operators))
    assert.strictEqual(sessions.length, 4)
    assert.strictEqual((await Kit.post(url, mine, call, key(theirs))).status, 200)
  })

  it("requires the operator's key on the operator's routes, and shows no key or whole session id on any route", async () => {
    const session = await open(url, ours)
    await Kit.post(url, session, call, key(ours))
    const routes = { "/sessions": "GET", "/sessions/events": "GET", "/metrics": "GET", "/sessions/1": "DELETE" }
    const attempts: ReadonlyArray<Record<string, string>> = [{}, key(ours), key("wrong")]
    for (const [path, method] of Object.entries(routes)) {
      for (const headers of attempts) {
        const { status } = await fetch(`${origin}${path}`, { method, headers })
        assert.deepStrictEqual([path, status], [path, 401])
      }
    }
    for (const path of ["/", "/health", "/ready", "/sessions", "/metrics"]) {
      const response = await fetch(`${origin}${path}`, { headers: path in routes ? key(operators) : {} })
      assert.deepStrictEqual([path, response.status], [path, 200])
      const text = await response.text()
      for (const secret of [ours, theirs, operators, session]) assert.notInclude(text, secret)
    }
  })

  it("answers 403 on the operator's routes without an operator's key in the settings", async () => {
    const { origin } = await Serve.gateway({ backends, keys: [ours] })
    for (const path of ["/sessions", "/metrics", "/sessions/events"]) {
      assert.strictEqual((await fetch(`${origin}${path}`, { headers: key(ours) })).status, 403)
    }
  })
})

it("a gateway in a program refuses the settings of the command: a file of keys, TLS and replicas", () => {
  const ofCommand = { keysFile: "keys.txt", tlsCert: "cert.pem", tlsKey: "key.pem", cluster: true }
  const { faults } = Effect.runSync(Effect.flip(Gateway.config({ backends, ...ofCommand })))
  assert.deepStrictEqual(faults, [
    "keysFile: only the command has it; pass the keys themselves in keys",
    "tlsCert: only the command has it; serve the routes on a server with TLS",
    "tlsKey: only the command has it; serve the routes on a server with TLS",
    "cluster: only the command has it; run effect-session-pool --cluster"
  ])
})

describe("requests of a browser", async () => {
  const app = "https://app.example.com"
  const { origin, url } = await Serve.gateway({ backends, allowedOrigins: [app], allowedHosts: ["mcp.example.com"] })
  const wanted = { method: "POST", headers: "content-type,mcp-session-id,authorization" }
  const asked = Object.entries(wanted).map(([name, value]) => [`access-control-request-${name}`, value])
  const preflight = (origin: string) =>
    fetch(url, { method: "OPTIONS", headers: { origin, ...Object.fromEntries(asked) } })

  it("are refused with 403 on every route for a foreign Origin or Host", async () => {
    const gets = ["/mcp/counter", "/", "/sessions", "/sessions/events", "/metrics", "/health", "/ready"]
    const routes = { POST: ["/mcp"], DELETE: ["/mcp", "/sessions/1"], GET: gets }
    const origins = ["https://evil.example", "null", "http://127.0.0.1.evil.example"]
      .concat("https://app.example.com.evil.example", "file://localhost").map((origin) => ({ origin }))
    const hosts = ["evil.example", "localhost.evil.example:8420", "127.0.0.1@evil.example"].map((host) => ({ host }))
    for (const [method, paths] of Object.entries(routes)) {
      for (const path of paths) {
        for (const wrong of [...origins, ...hosts]) {
          const { status } = await Serve.ask(origin, path, { ...wrong }, method)
          assert.deepStrictEqual([method, path, wrong, status], [method, path, wrong, 403])
        }
      }
    }
  })

  it("are allowed from this machine and from listed origins and hosts, and other origins get no CORS header", async () => {
    const near = { host: "localhost:8420", origin: "http://localhost:3000" }
    assert.strictEqual((await Serve.ask(origin, "/mcp", near)).status, 200)
    assert.strictEqual((await Serve.ask(origin, "/mcp", { host: "mcp.example.com:443" })).status, 200)
    const { headers, status } = await Kit.initialize(url, { origin: app })
    assert.deepStrictEqual([status, headers.get("access-control-allow-origin")], [200, app])
    assert.match(headers.get("access-control-expose-headers") ?? "", /mcp-session-id/i)
    const passed = await preflight(app)
    assert.deepStrictEqual([passed.status, passed.headers.get("access-control-allow-origin")], [204, app])
    assert.match(passed.headers.get("access-control-allow-headers") ?? "", /mcp-session-id/i)
    assert.isNull((await preflight("https://evil.example")).headers.get("access-control-allow-origin"))
  })
})

describe("floods and slow clients", () => {
  it("a flood of sessions beyond the back end's limit gets 503 with Retry-After, and no further process", async () => {
    const { origin, url } = await Serve.gateway({ backends, maxSessionsPerBackend: 4 })
    const responses = await Promise.all(Array.from({ length: 12 }, () => Kit.initialize(url)))
    const told = responses.map(({ headers, status }) => `${status} ${headers.has("retry-after")}`).toSorted()
    assert.deepStrictEqual(told, [...Array(4).fill("200 false"), ...Array(8).fill("503 true")])
    assert.strictEqual((await Serve.overview(origin)).sessions.length, 4)
    await Serve.remove(url, responses.find(({ status }) => status === 200)?.headers.get("mcp-session-id") ?? "")
    assert.match(await Kit.open(url), uuid)
  })

  it("a session with a GET stream is not evicted", async () => {
    const { url } = await Serve.gateway({ backends, maxSessions: 2 })
    const [listening, idle] = [await Kit.open(url), await Kit.open(url)]
    await Kit.listen(url, listening)
    assert.match(await Kit.open(url), uuid)
    assert.strictEqual(await Serve.statusOf(url, idle, call), 404)
    assert.strictEqual(await Kit.toolText(url, listening, "count"), "1")
  })

  const health = "GET /health HTTP/1.1\r\nHost: localhost\r\n"
  const post = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
    "Accept: application/json, text/event-stream\r\n"
  const exchange = (connection: Raw.RawConnection, ...parts: ReadonlyArray<string>) =>
    connection.exchange(parts.map((part) => Buffer.from(part)))
  /** The status of the command's answer to a client that sends only this. */
  const statusOf = async (port: number, sent: string) => (await exchange(await Raw.open(port), sent))?.status

  it("the command refuses too large a header with 431, and ignores an offered upgrade of a connection", async () => {
    const { port } = await Serve.command(["--max-header-bytes", "2048"])
    assert.strictEqual(await statusOf(port, `${health}X-Big: ${"x".repeat(4096)}\r\n\r\n`), 431)
    for (const offer of ["Upgrade, HTTP2-Settings\r\nUpgrade: h2c", "Upgrade\r\nUpgrade: websocket"]) {
      const connection = await Raw.open(port)
      const head = `${post}Content-Length: 2\r\nConnection: ${offer}\r\n\r\n`
      assert.strictEqual((await exchange(connection, `${head}{`, "}"))?.status, 400)
      assert.strictEqual((await exchange(connection, `${health}\r\n`))?.status, 200)
      connection.socket.destroy()
    }
  })

  // Alone, --body-timeout also bounds the header. Node takes whole milliseconds only.
  for (const flags of ["--headers-timeout=300 millis --body-timeout=600 millis", "--body-timeout=500500 micros"]) {
    it(`a client that sends its header or its body too slowly is disconnected with 408: ${flags}`, async () => {
      const { port } = await Serve.command(flags.split(/ (?=--)/))
      const slow = [`${post}X-Slow: `, `${post}Content-Length: 500\r\n\r\n{"jsonrpc"`]
      assert.deepStrictEqual(await Promise.all(slow.map((sent) => statusOf(port, sent))), [408, 408])
    })
  }
})

describe("secrets", () => {
  it("are masked in errors and lists: values of the environment, the longest first, and credentials", async () => {
    const lines = {
      "abcdefgh abcdef short production": "*** *** short production",
      "Authorization: Bearer abc.def-123456": "Authorization: ***",
      "\"authorization\":\"Basic Zm9vOmJhcg==\"": "\"authorization\":\"***\"",
      "sent Bearer 0123456789abc on": "sent Bearer *** on",
      "see postgres://me:pw@host/db": "see postgres://***@host/db",
      "nothing to hide at https://host/a?b=c": "nothing to hide at https://host/a?b=c"
    }
    const script = "for line; do echo \"$line\" >&2; done; exit 3"
    const env = { A: "abcdef", B: "abcdefgh", C: "short", D: "production", E: "" }
    const broken = { command: "sh", args: ["-c", script, "sh", ...Object.keys(lines)], env }
    const { origin, url } = await Serve.gateway({ backends: { broken } })
    const { error } = await (await Kit.initialize(url)).json()
    const [listed] = (await Serve.overview(origin)).backends
    for (const text of [error.message, listed.lastFailure]) {
      for (const line of Object.values(lines)) assert.include(text, line)
    }
  })

  it("are not in the log of a hostile client and a hostile back end, and each record stays one line", async () => {
    const { output, url } = await Serve.command([], { GATEWAY_KEYS: ours })
    const session = await open(url, ours)
    const evil = "evil\n{\"level\":\"INFO\",\"message\":\"forged\"}\u001b[2J"
    await fetch(url, { method: "POST", headers: { ...Kit.headers, ...key(ours) }, body: JSON.stringify({ evil }) })
    await Kit.post(url, session, Kit.toolCall(1, "garbage"), key(ours))
    await Kit.post(url, session, JSON.stringify({ jsonrpc: "2.0", id: 2, method: evil }), key(ours))
    await fetch(url.replace("/mcp/", `/mcp/${encodeURIComponent(evil)}`), { headers: key(ours) })
    await Kit.eventually("the garbage is logged", () => output().includes("not a JSON-RPC message"))
    const [, log = ""] = output().split(/Stop it with Ctrl-C.*\n/)
    const records = log.split("\n").filter((line) => line !== "")
    assert.isAtLeast(records.length, 2)
    for (const line of records) assert.doesNotThrow(() => JSON.parse(line), `no JSON: ${line}`)
    for (const secret of [ours, session, "forged", "this is no JSON"]) assert.notInclude(output(), secret)
  })
})

it("TLS is spoken when a certificate and its key are given", async () => {
  const path = (name: string) => new URL(`../fixtures/tls/${name}.pem`, import.meta.url).pathname
  const { origin } = await Serve.command(["--tls-cert", path("cert"), "--tls-key", path("key")])
  assert.match(origin, /^https:/)
  const status = await new Promise<number | undefined>((resolve, reject) => {
    get(`${origin}/health`, { ca: readFileSync(path("cert")) }, (response) => resolve(response.resume().statusCode))
      .on("error", reject)
  })
  assert.strictEqual(status, 200)
})
