/** Who may come in: each test tries to get in, or to get something out. */
import { Effect } from "effect"
import { readFileSync } from "node:fs"
import { request } from "node:http"
import { request as requestTls } from "node:https"
import { connect } from "node:net"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Masking from "../../src/gateway/settings/Masking.ts"
import * as Kit from "../kit/gateway/gateway.ts"

const key = (value: string) => ({ authorization: `Bearer ${value}` })
const [ours, theirs, operators] = ["our-key-0123456789", "their-key-0123456789", "operators-key-0123456789"]

/** Opens a session with a key. */
const open = async (url: string, value: string): Promise<string> => {
  const response = await fetch(url, {
    method: "POST",
    headers: { ...Kit.headers, ...key(value) },
    body: Kit.initializeBody
  })
  await response.text()
  return response.headers.get("mcp-session-id") ?? `status ${response.status}`
}

describe("a gateway with keys", () => {
  let gateway: Kit.Running
  let url: string
  beforeAll(async () => {
    gateway = await Kit.start({
      backends: { counter: Kit.counter() },
      keys: [ours, theirs],
      adminKeys: [operators],
      // Half of them for each key.
      maxSessions: 6
    })
    url = `${gateway.origin}/mcp`
  })
  afterAll(() => gateway.stop())

  it("lets nobody in without a key, with a wrong one, a part of one, or in another form: 401, and says what to show", async () => {
    const attempts: ReadonlyArray<Record<string, string>> = [
      {},
      key("wrong"),
      key(ours.slice(0, -1)),
      key(`${ours}x`),
      key(""),
      key(operators),
      { authorization: ours },
      { authorization: `Basic ${ours}` },
      { authorization: "Bearer" },
      { "x-api-key": ours },
      { cookie: `authorization=Bearer ${ours}` }
    ]
    for (const headers of attempts) {
      for (const method of ["POST", "GET", "DELETE"]) {
        const response = await fetch(url, {
          method,
          headers: { ...Kit.headers, ...headers },
          ...(method === "POST" ? { body: Kit.initializeBody } : {})
        })
        assert.deepStrictEqual([headers, method, response.status], [headers, method, 401])
        assert.match(response.headers.get("www-authenticate") ?? "", /^Bearer realm=/)
        assert.notInclude(await response.text(), ours)
      }
    }
  })

  it("a session does not exist for another key: not for requests, streams, resumption, responses or DELETE", async () => {
    const session = await open(url, ours)
    const foreign = { ...key(theirs), "mcp-session-id": session }
    const statuses = [
      (await Kit.post(url, session, Kit.toolCall(1, "count"), key(theirs))).status,
      (await Kit.post(url, session, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}", key(theirs))).status,
      (await fetch(url, { headers: { accept: "text/event-stream", ...foreign } })).status,
      (await fetch(url, { headers: { accept: "text/event-stream", ...foreign, "last-event-id": "a-1-1" } })).status,
      (await fetch(url, { method: "DELETE", headers: foreign })).status
    ]
    assert.deepStrictEqual(statuses, [404, 404, 404, 404, 404])
    const response = await Kit.post(url, session, Kit.toolCall(1, "count"), key(ours))
    assert.strictEqual((await response.json()).result.content[0].text, "1")
  })

  it("no id can be made to mean the session of another key", async () => {
    const session = await open(url, ours)
    const guesses = [
      `${session}.`,
      `${session}/`,
      `../counter/${session}`,
      `${session}%00`,
      `${session.slice(0, -1)}0`,
      session.toUpperCase(),
      ` ${session} x`,
      "*",
      "__proto__",
      "x".repeat(5000)
    ]
    for (const guess of guesses) {
      const response = await Kit.post(url, guess, Kit.toolCall(1, "count"), key(theirs))
      assert.deepStrictEqual([guess, response.status], [guess, 404])
    }
  })

  it("ids are 122 random bits", async () => {
    const session = await open(url, ours)
    assert.match(session, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  })

  it("whoever tries keys is counted, at the operator's routes too: an alert asks for it", async () => {
    const refused = async () => {
      const response = await fetch(`${gateway.origin}/metrics`, { headers: key(operators) })
      assert.strictEqual(response.status, 200)
      return Number(/^mcp_gateway_refusals_total\{status="401"\} (\d+)$/m.exec(await response.text())?.[1] ?? 0)
    }
    const before = await refused()
    await fetch(`${gateway.origin}/sessions`, { headers: key("wrong") })
    await fetch(`${gateway.origin}/metrics`, { headers: key("wrong") })
    await fetch(url, { method: "POST", headers: key("wrong") })
    assert.strictEqual(await refused(), before + 3)
  })

  it("a key that opens many sessions has half of them by default, and makes room among its own, never among another's", async () => {
    const mine = await open(url, theirs)
    for (let i = 0; i < 4; i++) assert.match(await open(url, ours), /^[0-9a-f-]{36}$/)
    const { sessions } = await (await fetch(`${gateway.origin}/sessions`, { headers: key(operators) })).json()
    assert.strictEqual(sessions.length, 4)
    assert.strictEqual((await Kit.post(url, mine, Kit.toolCall(1, "count"), key(theirs))).status, 200)
  })

  it("the operator's routes need the operator's key; the page itself and health tell nothing secret", async () => {
    for (
      const [method, path] of [["GET", "/sessions"], ["GET", "/sessions/events"], ["GET", "/metrics"], [
        "DELETE",
        "/sessions/1"
      ]]
    ) {
      for (const headers of [{}, key(ours), key("wrong")]) {
        const response = await fetch(`${gateway.origin}${path}`, { method: method ?? "", headers })
        assert.deepStrictEqual([path, response.status], [path, 401])
      }
    }
    const session = await open(url, ours)
    for (const path of ["/", "/health", "/ready"]) {
      const response = await fetch(`${gateway.origin}${path}`)
      assert.deepStrictEqual([path, response.status], [path, 200])
      const text = await response.text()
      for (const secret of [ours, theirs, operators, session]) assert.notInclude(text, secret)
    }
  })

  it("nothing that operators see holds a key or a whole session id", async () => {
    const session = await open(url, ours)
    await Kit.post(url, session, Kit.toolCall(1, "count"), key(ours))
    for (const path of ["/sessions", "/metrics"]) {
      const text = await (await fetch(`${gateway.origin}${path}`, { headers: key(operators) })).text()
      for (const secret of [ours, theirs, operators, session]) assert.notInclude(text, secret)
    }
  })
})

describe("a program's gateway", () => {
  it("is refused what only the command carries out: it would ask for no keys, speak in the clear, or be alone", () => {
    const { faults } = Effect.runSync(
      Effect.flip(Gateway.config({
        backends: { a: { command: "run" } },
        keysFile: "keys.txt",
        tlsCert: "cert.pem",
        tlsKey: "key.pem",
        cluster: true
      }))
    )
    assert.deepStrictEqual(faults, [
      "keysFile: only the command has it; pass the keys themselves in keys",
      "tlsCert: only the command has it; serve the routes on a server with TLS",
      "tlsKey: only the command has it; serve the routes on a server with TLS",
      "cluster: only the command has it; run effect-session-pool --cluster"
    ])
  })
})

describe("without an operator's key", () => {
  it("a gateway that asks clients for keys tells its operator's routes to nobody", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() }, keys: [ours] })
    for (const path of ["/sessions", "/metrics", "/sessions/events"]) {
      assert.strictEqual((await fetch(`${gateway.origin}${path}`, { headers: key(ours) })).status, 403)
    }
    await gateway.stop()
  })
})

describe("from a browser", () => {
  let gateway: Kit.Running
  const app = "https://app.example.com"
  beforeAll(async () => {
    gateway = await Kit.start({
      backends: { counter: Kit.counter() },
      allowedOrigins: [app],
      allowedHosts: ["mcp.example.com"]
    })
  })
  afterAll(() => gateway.stop())

  /** `fetch` does not let a program choose its Host. */
  const status = (path: string, method: string, headers: Record<string, string>) =>
    new Promise<number>((resolve, reject) => {
      const { hostname, port } = new URL(gateway.origin)
      request({ hostname, port, path, method, headers }, (response) => {
        response.resume().on("end", () => resolve(response.statusCode ?? 0))
      }).on("error", reject).end(method === "POST" ? Kit.initializeBody : undefined)
    })

  it("a foreign Origin or a rebinding Host is 403 on every route", async () => {
    for (
      const [path, method] of [
        ["/mcp", "POST"],
        ["/mcp/counter", "GET"],
        ["/mcp", "DELETE"],
        ["/", "GET"],
        ["/sessions", "GET"],
        ["/sessions/events", "GET"],
        ["/sessions/1", "DELETE"],
        ["/metrics", "GET"],
        ["/health", "GET"],
        ["/ready", "GET"]
      ] as const
    ) {
      for (
        const wrong of [
          { origin: "https://evil.example" },
          { origin: "null" },
          { origin: "http://127.0.0.1.evil.example" },
          { origin: "https://app.example.com.evil.example" },
          { origin: "file://localhost" },
          { host: "evil.example" },
          { host: "localhost.evil.example:8420" },
          { host: "127.0.0.1@evil.example" }
        ]
      ) {
        assert.deepStrictEqual(
          [path, wrong, await status(path, method, { ...Kit.headers, ...wrong })],
          [path, wrong, 403]
        )
      }
    }
  })

  it("a listed origin may come in, is told the session's id, and passes the preflight; others get no CORS header", async () => {
    const preflight = await fetch(`${gateway.origin}/mcp`, {
      method: "OPTIONS",
      headers: {
        origin: app,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,mcp-session-id,authorization"
      }
    })
    assert.strictEqual(preflight.status, 204)
    assert.strictEqual(preflight.headers.get("access-control-allow-origin"), app)
    assert.match(preflight.headers.get("access-control-allow-headers") ?? "", /mcp-session-id/i)
    const opened = await fetch(`${gateway.origin}/mcp`, {
      method: "POST",
      headers: { ...Kit.headers, origin: app },
      body: Kit.initializeBody
    })
    assert.deepStrictEqual([opened.status, opened.headers.get("access-control-allow-origin")], [200, app])
    assert.match(opened.headers.get("access-control-expose-headers") ?? "", /mcp-session-id/i)
    const foreign = await fetch(`${gateway.origin}/mcp`, {
      method: "OPTIONS",
      headers: { origin: "https://evil.example", "access-control-request-method": "POST" }
    })
    assert.strictEqual(foreign.headers.get("access-control-allow-origin"), null)
    assert.strictEqual(await status("/mcp", "POST", { ...Kit.headers, host: "mcp.example.com:443" }), 200)
  })
})

describe("floods and slow clients", () => {
  it("a flood of sessions ends at the limit of the back end: 503 with Retry-After, and no process more", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() }, maxSessionsPerBackend: 4 })
    const url = `${gateway.origin}/mcp`
    const responses = await Promise.all(
      Array.from({ length: 12 }, () => Kit.initialize(url))
    )
    const statuses = responses.map(({ status }) => status).toSorted()
    assert.deepStrictEqual(statuses, [...Array(4).fill(200), ...Array(8).fill(503)])
    assert.isTrue(responses.filter(({ status }) => status === 503).every(({ headers }) => headers.has("retry-after")))
    assert.strictEqual((await (await fetch(`${gateway.origin}/sessions`)).json()).sessions.length, 4)
    const [session] = responses.filter(({ status }) => status === 200).map(({ headers }) =>
      headers.get("mcp-session-id")
    )
    await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session ?? "" } })
    assert.match(await Kit.open(url), /^[0-9a-f-]{36}$/)
    await gateway.stop()
  })

  it("a session whose client listens is never the one that makes room", async () => {
    const gateway = await Kit.start({
      backends: { counter: Kit.counter() },
      maxSessions: 2
    })
    const url = `${gateway.origin}/mcp`
    const [listening, idle] = [await Kit.open(url), await Kit.open(url)]
    const stop = new AbortController()
    await Kit.listen(url, listening, {}, stop.signal)
    assert.match(await Kit.open(url), /^[0-9a-f-]{36}$/)
    assert.strictEqual((await Kit.post(url, idle, Kit.toolCall(1, "count"))).status, 404)
    assert.strictEqual(await Kit.toolText(url, listening, "count"), "1")
    stop.abort()
    await gateway.stop()
  })

  /** What the server of the command line answers to a client that sends this and then nothing. */
  const answerTo = (port: number, sent: string) =>
    new Promise<string>((resolve) => {
      const socket = connect(port, "127.0.0.1")
      let text = ""
      socket.on("data", (chunk) => {
        text += chunk
      }).on("close", () => resolve(text)).on("error", () => undefined)
      socket.write(sent)
    })

  it("refuses too large a header with 431", async () => {
    const { args, command } = Kit.counter()
    const gateway = Kit.run(["--port", "0", "--max-header-bytes", "2048", "--", command, ...args])
    const port = Number(new URL(await Kit.urlOf(gateway)).port)
    const big = `GET /health HTTP/1.1\r\nHost: localhost\r\nX-Big: ${"x".repeat(4096)}\r\n\r\n`
    assert.match(await answerTo(port, big), /^HTTP\/1\.1 431 /)
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })

  it("a time-out of the body below that of the header is taken and bounds the header too, in whole milliseconds as Node wants them", async () => {
    const { args, command } = Kit.counter()
    const gateway = Kit.run(["--port", "0", "--body-timeout", "500500 micros", "--", command, ...args])
    const port = Number(new URL(await Kit.urlOf(gateway)).port)
    assert.match(await answerTo(port, "POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-Slow: "), /^HTTP\/1\.1 408 /)
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })

  it("a client that sends its header or its body too slowly is cut off by the command's server", async () => {
    const gateway = Kit.run([
      "--port",
      "0",
      "--headers-timeout",
      "300 millis",
      "--body-timeout",
      "600 millis",
      "--",
      Kit.counter().command,
      ...Kit.counter().args
    ])
    const port = Number(new URL(await Kit.urlOf(gateway)).port)
    const [slowHeader, slowBody] = await Promise.all([
      answerTo(port, "POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-Slow: "),
      answerTo(
        port,
        "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
          "Accept: application/json, text/event-stream\r\nContent-Length: 500\r\n\r\n{\"jsonrpc\""
      )
    ])
    assert.match(slowHeader, /^HTTP\/1\.1 408 /)
    assert.match(slowBody, /^HTTP\/1\.1 408 /)
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })
})

describe("what could hold a secret", () => {
  it("a back end's stderr is told with the values of its environment hidden", async () => {
    const secret = "hunter2-hunter2"
    const script = "echo \"cannot log in as $DB_PASSWORD at https://me:pw12345@db\" >&2; exit 3"
    const gateway = await Kit.start({
      backends: { broken: { command: "sh", args: ["-c", script], env: { DB_PASSWORD: secret } } }
    })
    const response = await fetch(`${gateway.origin}/mcp`, {
      method: "POST",
      headers: Kit.headers,
      body: Kit.initializeBody
    })
    const text = await response.text()
    assert.include(text, "cannot log in as *** at https://***@db")
    const list = await (await fetch(`${gateway.origin}/sessions`)).text()
    assert.include(list, "cannot log in as ***")
    assert.notInclude(text + list, secret)
    await gateway.stop()
  })

  it("is hidden wherever it stands, the longest first, and the rest stays readable", () => {
    const mask = Masking.make(["abcdef", "abcdefgh", "short", "production", ""])
    assert.strictEqual(mask("abcdefgh abcdef short production"), "*** *** short production")
    assert.strictEqual(mask("Authorization: Bearer abc.def-123456"), "Authorization: ***")
    assert.strictEqual(mask("\"authorization\":\"Basic Zm9vOmJhcg==\""), "\"authorization\":\"***\"")
    assert.strictEqual(mask("sent Bearer 0123456789abc on"), "sent Bearer *** on")
    assert.strictEqual(mask("see postgres://me:pw@host/db"), "see postgres://***@host/db")
    assert.strictEqual(mask("nothing to hide at https://host/a?b=c"), "nothing to hide at https://host/a?b=c")
  })

  it("the log of a hostile client and a hostile back end stays one line a record, without ids, keys or bodies", async () => {
    const gateway = Kit.run(["--port", "0", "--", Kit.counter().command, ...Kit.counter().args], {
      GATEWAY_KEYS: ours
    })
    const url = await Kit.urlOf(gateway)
    const session = await open(url, ours)
    const evil = "evil\n{\"level\":\"INFO\",\"message\":\"forged\"}\u001b[2J"
    await fetch(url, { method: "POST", headers: { ...Kit.headers, ...key(ours) }, body: JSON.stringify({ evil }) })
    await Kit.post(url, session, Kit.toolCall(1, "garbage"), key(ours))
    await Kit.post(url, session, JSON.stringify({ jsonrpc: "2.0", id: 2, method: evil }), key(ours))
    await fetch(url.replace("/mcp/", `/mcp/${encodeURIComponent(evil)}`), { headers: key(ours) })
    await Kit.eventually("the garbage is logged", () => gateway.output().includes("not a JSON-RPC message"))
    const records =
      gateway.output().split("Stop it with Ctrl-C")[1]?.split("\n").slice(1).filter((line) => line !== "") ?? []
    assert.isAtLeast(records.length, 2)
    for (const line of records) assert.doesNotThrow(() => JSON.parse(line), `no JSON: ${line}`)
    for (const secret of [ours, session, "forged", "this is no JSON"]) assert.notInclude(gateway.output(), secret)
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })
})

describe("TLS", () => {
  it("is spoken when a certificate and its key are given", async () => {
    const [cert = "", keyFile = ""] = ["cert", "key"].map((name) =>
      new URL(`../fixtures/tls/${name}.pem`, import.meta.url).pathname
    )
    const ca = readFileSync(cert)
    const gateway = Kit.run(["--port", "0", "--tls-cert", cert, "--tls-key", keyFile])
    const url = await Kit.urlOf(gateway)
    assert.match(url, /^https:/)
    const status = await new Promise<number>((resolve, reject) => {
      requestTls(url.replace("/mcp/everything", "/health"), { ca }, (response) => {
        response.resume().on("end", () => resolve(response.statusCode ?? 0))
      }).on("error", reject).end()
    })
    assert.strictEqual(status, 200)
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })
})

describe("names of back ends", () => {
  it("that could lead elsewhere do not exist: 404, whatever the spelling", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() } })
    const { hostname, port } = new URL(gateway.origin)
    for (
      const path of [
        "/mcp/..%2fsessions",
        "/mcp/%2e%2e",
        "/mcp/counter%00",
        "/mcp/__proto__",
        "/mcp/constructor",
        "/mcp/COUNTER"
      ]
    ) {
      const status = await new Promise<number>((resolve, reject) => {
        request({ hostname, port, path, method: "POST", headers: Kit.headers }, (response) => {
          response.resume().on("end", () => resolve(response.statusCode ?? 0))
        }).on("error", reject).end(Kit.initializeBody)
      })
      assert.deepStrictEqual([path, status], [path, 404])
    }
    await gateway.stop()
  })
})
