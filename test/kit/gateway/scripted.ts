/** A scripted server on Streamable HTTP, and a transport to it that records the server's messages. */
import { NodeHttpClient } from "@effect/platform-node"
import { afterEach, beforeAll, beforeEach } from "@effect/vitest"
import { Clock, Deferred, Duration, Effect, Exit, Option, Scope } from "effect"
import type { IncomingMessage, ServerResponse } from "node:http"
import * as JsonRpc from "../../../src/gateway/protocol/JsonRpc.ts"
import * as Modern from "../../../src/gateway/protocol/Modern.ts"
import * as HttpTransport from "../../../src/gateway/transports/HttpTransport.ts"
import type { Transport } from "../../../src/gateway/transports/Transport.ts"
import * as Kit from "./gateway.ts"
import * as Serving from "./serving.ts"

// Any message.
// oxlint-disable-next-line typescript/no-explicit-any
type Json = any

interface Seen {
  readonly method: string
  readonly headers: IncomingMessage["headers"]
  readonly message: Json
  readonly body: string
  closed: boolean
}

export type Answer = (response: ServerResponse, message: Json, headers: IncomingMessage["headers"]) => unknown

export const json = (response: ServerResponse, message: object, status = 200, headers = {}) =>
  response.writeHead(status, { "content-type": "application/json", ...headers })
    .end(JSON.stringify({ jsonrpc: "2.0", ...message }))

export const stream = (response: ServerResponse, ...events: ReadonlyArray<string>): ServerResponse => {
  response.writeHead(200, { "content-type": "text/event-stream" })
  for (const event of events) response.write(event)
  return response
}

export const event = (message: object, id?: string) =>
  `${id === undefined ? "" : `id: ${id}\n`}data: ${JSON.stringify({ jsonrpc: "2.0", ...message })}\n\n`

const accepted: Answer = (response) => response.writeHead(202).end()

/** An HTTP server that records its requests, and answers them by the method of the message, or else by that of HTTP. */
export const upstream = async (answers: () => Record<string, Answer>, otherwise = accepted) => {
  const seen: Array<Seen> = []
  const origin = await Serving.upstream((response, message, { headers, method = "" }, body) => {
    const entry: Seen = { method, headers, message, body, closed: false }
    seen.push(entry)
    response.on("close", () => {
      entry.closed = true
    })
    const answer = answers()[message.method ?? method] ?? otherwise
    answer(response, message, headers)
  })
  return { url: `${origin}/mcp`, seen }
}

const legacy: Record<string, Answer> = {
  initialize: (response, { id }) =>
    json(response, { id, result: { protocolVersion: "2025-06-18", capabilities: {} } }, 200, {
      "mcp-session-id": "s-1"
    }),
  GET: (response) => response.writeHead(405).end(),
  DELETE: (response) => response.writeHead(204).end()
}

const meta = { [Modern.metaKeys.protocolVersion]: Modern.version, [Modern.metaKeys.clientCapabilities]: {} }

/** Both, for the tests of a file. Each test gets a new state, but the port of the server stays. */
export class Scripted {
  seen: Array<Seen> = []
  /** How the server answers a request: by the method of its message, or else by that of HTTP. By default 202. */
  answers: Record<string, Answer> = {}
  /** The messages of the server, parsed from `texts`. */
  messages: Array<Json> = []
  /** The texts of these messages. */
  texts: Array<string> = []
  /** The texts that are no messages. */
  garbage: Array<string> = []
  room = true
  waiting: Array<() => void> = []
  transport!: Transport
  url = ""
  #scope = Effect.runSync(Scope.make())

  constructor() {
    beforeAll(async () => {
      const { seen, url } = await upstream(() => this.answers)
      this.seen = seen
      this.url = url
    })
    beforeEach(async () => {
      this.seen.length = 0
      this.messages = []
      this.texts = []
      this.garbage = []
      this.room = true
      this.waiting = []
      this.answers = { ...legacy }
      await this.renew(this.url)
    })
    afterEach(() => this.close())
  }

  /** Replaces the transport. Its time-outs run on `clock`. */
  async renew(url: string, clock = Clock.Clock.defaultValue()) {
    await this.close()
    this.#scope = Effect.runSync(Scope.make())
    this.transport = await Effect.runPromise(
      HttpTransport.make(
        { url, headers: { "x-extra": "yes", "Mcp-Param-Tenant": "ours" } },
        { maxLineBytes: 10_000, writeTimeout: Duration.minutes(5) },
        (text) => text
      ).pipe(
        Effect.tap((transport) =>
          transport.attach({
            receive: ({ text }) => {
              this.texts.push(text)
              this.messages.push(JSON.parse(text))
              return this.room
            },
            garbage: (text) => void this.garbage.push(text),
            room: Effect.callback((resume) => void this.waiting.push(() => resume(Effect.void)))
          })
        ),
        Effect.provideService(Scope.Scope, this.#scope),
        Effect.provideService(Clock.Clock, clock),
        Effect.provide(NodeHttpClient.layerNodeHttp)
      )
    )
  }

  close() {
    return Effect.runPromise(Scope.close(this.#scope, Exit.void))
  }

  write(message: object) {
    const read = JsonRpc.read(JSON.stringify({ jsonrpc: "2.0", ...message }))
    if (read === undefined) throw new Error("not a message")
    this.transport.offer(read)
  }

  call(id: number, method: string, params: object = {}) {
    this.write({ id, method, params })
  }

  modernCall(id: number, method: string, params: object = {}) {
    this.call(id, method, { ...params, _meta: meta })
  }

  /** The answer to a request of revision 2026-07-28. */
  modernAnswer(id: number, method: string, params: object = {}): Promise<Json> {
    this.modernCall(id, method, params)
    return this.answerOf(id)
  }

  async answerOf(id: number): Promise<Json> {
    const find = () => this.messages.find((message) => message.id === id)
    await Kit.eventually(`an answer to ${id}`, () => find() !== undefined)
    return find()
  }

  async handshake() {
    this.call(0, "initialize")
    await this.answerOf(0)
    this.write({ method: "notifications/initialized" })
    await Kit.eventually("the stream is asked for", () => this.seen.some(({ method }) => method === "GET"))
  }

  /** The reason for the end of the transport. */
  async ended(): Promise<string> {
    const failure = await Effect.runPromise(Effect.timeoutOption(Deferred.await(this.transport.ended), "25 seconds"))
    return Option.match(failure, { onNone: () => "it has not", onSome: ({ message }) => message })
  }
}
