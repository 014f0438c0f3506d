/** Requests that come after the port is open and before the gateway is up. */
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import { Agent, createServer, get } from "node:http"
import { connect } from "node:net"
import { text } from "node:stream/consumers"
import { afterEach, assert, beforeEach, describe, it } from "vitest"
import * as EarlyRequests from "../../src/gateway/fronts/EarlyRequests.ts"
import * as Kit from "../kit/gateway/gateway.ts"

describe("a request that comes too early", () => {
  let server: Server
  let url: string
  let port: number
  /** Requests that have come, those that were held twice. */
  let come = 0
  beforeEach(async () => {
    come = 0
    server = EarlyRequests.hold(createServer())
    const emit = server.emit.bind(server)
    server.emit = (event: string, ...rest: Array<unknown>) => {
      if (event === "request") come++
      return emit(event, ...rest)
    }
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    const address = server.address()
    port = typeof address === "object" && address !== null ? address.port : 0
    url = `http://127.0.0.1:${port}/`
  })
  afterEach(() => {
    server.closeAllConnections()
    server.close()
  })
  const arrived = (count: number) => Kit.eventually("they have come", () => come >= count)
  /** What the gateway would do: answers with the body that came. */
  const serve = (bodies: Array<string>) =>
    server.on("request", (request, response) => {
      let body = ""
      request.setEncoding("utf8").on("data", (chunk) => {
        body += chunk
      }).on("end", () => {
        bodies.push(body)
        response.end(`got ${body.length}`)
      })
    })

  it("is answered once somebody listens, with its body; later ones as always", async () => {
    const bodies: Array<string> = []
    const large = "x".repeat(1_000_000)
    const first = fetch(url, { method: "POST", body: large })
    await arrived(1)
    const second = fetch(url)
    await arrived(2)
    serve(bodies)
    assert.strictEqual(await (await first).text(), "got 1000000")
    assert.strictEqual(await (await second).text(), "got 0")
    assert.strictEqual(await (await fetch(url, { method: "POST", body: "later" })).text(), "got 5")
    assert.deepStrictEqual([...bodies].toSorted(), ["", "later", large])
  })

  it("and whose client is gone by then is nobody's any more, and harms nobody", async () => {
    const bodies: Array<string> = []
    const closed = new Promise((resolve) => server.once("connection", (theirs) => theirs.once("close", resolve)))
    const socket = connect(port, "127.0.0.1")
    socket.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf a body")
    await arrived(1)
    const other = fetch(url, { headers: { connection: "close" } })
    await arrived(2)
    socket.destroy()
    await closed
    serve(bodies)
    assert.strictEqual(await (await other).text(), "got 0")
    assert.deepStrictEqual(bodies, [""])
    // Only the other one was handed on.
    assert.strictEqual(come, 3)
  })

  it("gets 503 when the server is closed first, and the server is closed then", async () => {
    const waiting = [
      fetch(url, { method: "POST", body: "x".repeat(1_000_000) }),
      fetch(url)
    ]
    await arrived(2)
    const closed = new Promise((resolve) => server.close(resolve))
    for (const response of await Promise.all(waiting)) {
      assert.deepStrictEqual([response.status, response.headers.get("connection")], [503, "close"])
      assert.strictEqual((await response.json()).error.message, "The gateway is shutting down")
    }
    assert.isUndefined(await closed)
  })

  it("gets 503 too when it comes after the last one who listened has gone, while the server is being closed", async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    let last: ServerResponse | undefined
    const listener = (_: unknown, response: ServerResponse) => {
      last = response
    }
    server.on("request", listener)
    const ask = () =>
      new Promise<IncomingMessage>((resolve, reject) => {
        get(url, { agent }, resolve).on("error", reject)
      })
    const first = ask()
    await Kit.eventually("it has come", () => last !== undefined)
    const closed = new Promise((resolve) => server.close(resolve))
    server.off("request", listener)
    // On the same connection, which its own request keeps open.
    const second = ask()
    last?.end()
    ;(await first).resume()
    const refused = await second
    assert.deepStrictEqual([refused.statusCode, refused.headers["retry-after"]], [503, "10"])
    assert.strictEqual(JSON.parse(await text(refused)).error.message, "The gateway is shutting down")
    assert.isUndefined(await closed)
  })
})
