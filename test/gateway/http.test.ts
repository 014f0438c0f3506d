/** What each wrong request is told, and that no client can end the gateway. */
import { createServer, request } from "node:http"
import { connect } from "node:net"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import { answerWithoutRoutes } from "../../src/gateway/app/CommandLine.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Raw from "../kit/gateway/rawHttp.ts"

describe("over HTTP", () => {
  let gateway: Kit.Running
  let url: string
  beforeAll(async () => {
    gateway = await Kit.start({ backends: { a: Kit.counter(), b: Kit.counter() }, maxBodyBytes: 1024, maxSessions: 8 })
    url = `${gateway.origin}/mcp/a`
  })
  afterAll(() => gateway.stop())

  const status = async (method: string, headers: Record<string, string>, body?: string, at = url): Promise<number> => {
    const response = await fetch(at, { method, headers, ...(body === undefined ? {} : { body }) })
    await response.text()
    return response.status
  }

  /** `fetch` does not let a program choose its Host. */
  const statusFor = (headers: Record<string, string>) =>
    new Promise<number>((resolve, reject) => {
      const { hostname, pathname, port } = new URL(url)
      request(
        { hostname, port, path: pathname, method: "POST", headers: { ...Kit.headers, ...headers } },
        (response) => {
          response.resume().on("end", () => resolve(response.statusCode ?? 0))
        }
      ).on("error", reject).end(Kit.toolCall(1, "count"))
    })

  it("an unknown session is 404 with the code and the words of the official SDK, so that clients initialise again", async () => {
    for (const id of ["no-such-session", "00000000-0000-4000-8000-000000000000"]) {
      const response = await Kit.post(url, id, Kit.toolCall(1, "count"))
      assert.strictEqual(response.status, 404)
      const { error, ...rest } = await response.json()
      assert.deepStrictEqual([rest, error.code], [{ jsonrpc: "2.0", id: rest.id }, -32001])
      assert.match(error.message, /^Session not found/)
    }
  })

  describe("initialize opens a new session", () => {
    const openWith = async (session: string) => {
      const response = await Kit.post(url, session, Kit.initializeBody)
      assert.deepStrictEqual([response.status, (await response.json()).id], [200, 0])
      const opened = response.headers.get("mcp-session-id") ?? ""
      assert.strictEqual(await Kit.toolText(url, opened, "count"), "1")
      return opened
    }

    for (const id of ["no-such-session", "00000000-0000-4000-8000-000000000000"]) {
      it(`when it carries an id that no session has: ${id}`, () => openWith(id))
    }

    it("when it carries the id of a session that lives, whose server never hears of it", async () => {
      const session = await Kit.open(url)
      assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
      assert.notStrictEqual(await openWith(session), session)
      assert.strictEqual(await Kit.toolText(url, session, "count"), "2")
      assert.deepStrictEqual(JSON.parse(await Kit.toolText(url, session, "heard")), ["initialize"])
    })
  })

  it("a session of one back end does not exist at another", async () => {
    const session = await Kit.open(url)
    assert.strictEqual((await Kit.post(`${gateway.origin}/mcp/b`, session, Kit.toolCall(1, "count"))).status, 404)
    assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "count"))).status, 200)
  })

  it("a missing session id is 400, also for GET and DELETE", async () => {
    assert.strictEqual(await status("POST", Kit.headers, Kit.toolCall(1, "count")), 400)
    assert.strictEqual(await status("GET", { accept: "text/event-stream" }), 400)
    assert.strictEqual(await status("DELETE", {}), 400)
  })

  it("an unknown session is 404 for GET and DELETE too", async () => {
    const session = { "mcp-session-id": "no-such-session" }
    assert.strictEqual(await status("GET", { ...session, accept: "text/event-stream" }), 404)
    assert.strictEqual(await status("DELETE", session), 404)
  })

  it("an unsupported MCP-Protocol-Version is 400", async () => {
    assert.strictEqual(
      await status("POST", { ...Kit.headers, "mcp-protocol-version": "1999-01-01" }, Kit.initializeBody),
      400
    )
  })

  it("an Accept that lacks one of the two types is 406", async () => {
    assert.strictEqual(await status("POST", { ...Kit.headers, accept: "application/json" }, Kit.initializeBody), 406)
    assert.strictEqual(await status("POST", { ...Kit.headers, accept: "text/event-stream" }, Kit.initializeBody), 406)
    assert.strictEqual(await status("GET", { accept: "text/html", "mcp-session-id": "x" }), 406)
  })

  it("a content type that is not JSON is 415", async () => {
    assert.strictEqual(await status("POST", { ...Kit.headers, "content-type": "text/plain" }, Kit.initializeBody), 415)
  })

  it("a body over the limit is 413, whether its length is announced or not", async () => {
    const large = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "x", params: { text: "x".repeat(2000) } })
    assert.strictEqual(await status("POST", Kit.headers, large), 413)
    const stream = new ReadableStream({
      start: (controller) => {
        controller.enqueue(new TextEncoder().encode(large))
        controller.close()
      }
    })
    const init = { method: "POST", headers: Kit.headers, body: stream, duplex: "half" }
    const chunked = await fetch(url, init).then((response) => response.status, () => 413)
    assert.strictEqual(chunked, 413)
  })

  it("initialize without an object of params that names a revision is 400 with -32602, and starts no process", async () => {
    const launches = async () => (await (await fetch(`${gateway.origin}/sessions`)).json()).backends[0].launches
    const before = await launches()
    const initialize = (params: unknown) =>
      fetch(url, {
        method: "POST",
        headers: Kit.headers,
        body: JSON.stringify({ jsonrpc: "2.0", id: 7, method: "initialize", params })
      })
    for (const params of [undefined, null, [], "2025-06-18", 1, {}, { protocolVersion: 20250618 }, ["2025-06-18"]]) {
      const response = await initialize(params)
      const { error, id } = await response.json()
      assert.deepStrictEqual([params, response.status, error.code, id], [params, 400, -32602, 7])
      assert.include(error.message, "protocolVersion")
    }
    assert.strictEqual(await launches(), before)
    assert.strictEqual((await initialize({ protocolVersion: "any" })).status, 200)
  })

  it("broken JSON is 400 with -32700; JSON that is no message is 400 with -32600", async () => {
    for (
      const [body, code] of [
        ["{\"jsonrpc\"", -32700],
        ["{}", -32600],
        ["\"text\"", -32600],
        ["null", -32600],
        ["[]", -32600],
        ["[1]", -32600],
        [`[${Kit.initializeBody}]`, -32600],
        ["{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"x\"}", -32600],
        // An id that no double holds could not be answered.
        ["{\"jsonrpc\":\"2.0\",\"id\":1e400,\"method\":\"x\"}", -32600],
        ["{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"x\"}", -32600]
      ] as const
    ) {
      const response = await Kit.post(url, "any", body)
      assert.deepStrictEqual([body, response.status, (await response.json()).error.code], [body, 400, code])
    }
  })

  it("refuses a body nested deeper than 256 levels with 400 and the limit, whether it ends or not, in a batch too", async () => {
    const nested = (levels: number) =>
      `{"jsonrpc":"2.0","method":"x","params":${"[".repeat(levels - 1)}${"]".repeat(levels - 1)}}`
    for (const body of ["[".repeat(1000), nested(257), `[${nested(256)}]`]) {
      const response = await Kit.post(url, "any", body)
      const { error } = await response.json()
      assert.deepStrictEqual(
        [response.status, error],
        [400, { code: -32700, message: "The body is nested deeper than 256 levels" }]
      )
    }
    // These are read: there is no such session.
    for (const body of [nested(256), `{"jsonrpc":"2.0","method":"${"[{\\\"".repeat(100)}"}`]) {
      assert.strictEqual((await Kit.post(url, "any", body)).status, 404)
    }
  })

  it("a batch is 400 from the revision on that has none", async () => {
    const response = await Kit.post(url, "any", `[${Kit.toolCall(1, "count")}]`, {
      "mcp-protocol-version": "2025-06-18"
    })
    assert.deepStrictEqual([response.status, (await response.json()).error.code], [400, -32600])
  })

  it("another method is 405 and says which are allowed", async () => {
    const response = await fetch(url, { method: "PUT" })
    assert.deepStrictEqual([response.status, response.headers.get("allow")], [405, "GET, POST, DELETE"])
  })

  it("an unknown back end is 404 and names those there are", async () => {
    const response = await fetch(`${gateway.origin}/mcp/nope`, {
      method: "POST",
      headers: Kit.headers,
      body: Kit.initializeBody
    })
    assert.strictEqual(response.status, 404)
    assert.include((await response.json()).error.message, "/mcp/a, /mcp/b")
    assert.strictEqual(await status("POST", Kit.headers, Kit.initializeBody, `${gateway.origin}/mcp`), 404)
    assert.strictEqual(await status("POST", Kit.headers, Kit.initializeBody, `${gateway.origin}/mcp/constructor`), 404)
  })

  it("a foreign Origin and a foreign Host are 403", async () => {
    assert.strictEqual(await statusFor({ origin: "https://evil.example" }), 403)
    assert.strictEqual(await statusFor({ origin: "null" }), 403)
    assert.strictEqual(await statusFor({ host: "evil.example" }), 403)
    assert.strictEqual(await statusFor({ host: "localhost:8420", origin: "http://localhost:3000" }), 400)
  })

  it("notifications and responses are 202 without a body", async () => {
    const session = await Kit.open(url)
    for (
      const body of [
        "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}"
      ]
    ) {
      const response = await Kit.post(url, session, body)
      assert.deepStrictEqual([response.status, await response.text()], [202, ""])
    }
  })

  it("ids of different JSON types are different requests", async () => {
    const session = await Kit.open(url)
    const running = [1, "1"].map((id) => Kit.post(url, session, Kit.toolCall(id, "held")))
    await Kit.eventually("both run", async () => (await Kit.inFlight(gateway.origin)) === 2)
    for (const id of [1, "1"]) await Kit.release(url, session, id)
    const answers = await Promise.all(running.map(async (response) => (await response).json()))
    assert.deepStrictEqual(answers.map(({ id }) => id), [1, "1"])
  })

  it("a gateway whose sessions are all in use answers 503 with Retry-After", async () => {
    const small = await Kit.start({ backends: { a: Kit.counter() }, maxSessions: 1, acquireTimeout: "100 millis" })
    const session = await Kit.open(`${small.origin}/mcp`)
    const running = Kit.post(`${small.origin}/mcp`, session, Kit.toolCall(1, "never"))
    await Kit.eventually("the only session is in use", async () => (await Kit.inFlight(small.origin)) === 1)
    const refused = await fetch(`${small.origin}/mcp`, {
      method: "POST",
      headers: Kit.headers,
      body: Kit.initializeBody
    })
    assert.deepStrictEqual([refused.status, refused.headers.get("retry-after")], [503, "10"])
    await small.stop()
    await running.catch(() => undefined)
  })

  it("clients that cut their connection after any byte of an exchange leave the gateway serving", async () => {
    const session = await Kit.open(url)
    const { hostname, pathname, port } = new URL(url)
    const body = Kit.toolCall("x", "count")
    const exchange = [
      `POST ${pathname} HTTP/1.1`,
      `host: ${hostname}`,
      ...Object.entries({ ...Kit.headers, "mcp-session-id": session }).map(([name, value]) => `${name}: ${value}`),
      `content-length: ${body.length}`,
      "",
      body
    ].join("\r\n")
    for (let length = 1; length <= exchange.length; length++) {
      await new Promise<void>((resolve) => {
        const socket = connect(Number(port), hostname, () => {
          socket.write(exchange.slice(0, length), () => socket.resetAndDestroy())
        })
        socket.on("close", () => resolve())
      })
    }
    const { result } = await (await Kit.post(url, session, Kit.toolCall(1, "count"))).json()
    assert.isAtLeast(Number(result.content[0].text), 1)
  })
})

describe("a connection to the command", () => {
  const run = (...args: ReadonlyArray<string>) =>
    Kit.run(["--port", "0", ...args, "--", Kit.counter().command, ...Kit.counter().args])
  let gateway: Kit.Run
  beforeAll(async () => {
    gateway = run()
    await Kit.urlOf(gateway)
  }, 90_000)
  const stop = (one: Kit.Run) => {
    one.child.kill("SIGTERM")
    return one.exit
  }
  afterAll(() => stop(gateway))

  it("an offer to upgrade is passed over: the request is answered, and its connection takes the next one", async () => {
    const connection = await Raw.open(Number(new URL(await Kit.urlOf(gateway)).port))
    const ask = (offer: string) =>
      connection.exchange([Buffer.from(
        `POST /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Type: application/json\r\n${offer}` +
          "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
      )])
    const offers = [
      "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
      "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    ]
    for (const offer of [...offers, ""]) {
      const response = await ask(offer)
      assert.deepStrictEqual([offer, response?.status], [offer, 400])
      assert.include(response?.body, "-32600")
    }
    connection.socket.destroy()
  })

  it("is answered with 503 while no route is installed", async () => {
    const server = answerWithoutRoutes(createServer())
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    const address = server.address()
    const url = `http://127.0.0.1:${typeof address === "object" ? address?.port : ""}/`
    const early = await fetch(url, { method: "POST", body: "{}" })
    assert.deepStrictEqual([early.status, early.headers.get("retry-after")], [503, "10"])
    assert.strictEqual((await early.json()).error.message, "The gateway starts or stops")
    server.on("request", (_, response) => response.end("served"))
    assert.strictEqual(await (await fetch(url)).text(), "served")
    server.closeAllConnections()
    server.close()
  })

  it("announces a keep-alive of 75 seconds, or the one that is set", async () => {
    const other = run("--keep-alive-timeout", "7 seconds")
    for (const [one, seconds] of [[gateway, 75], [other, 7]] as const) {
      const response = await fetch(new URL("/health", await Kit.urlOf(one)))
      await response.text()
      assert.strictEqual(response.headers.get("keep-alive"), `timeout=${seconds}`)
    }
    await stop(other)
  })
})
