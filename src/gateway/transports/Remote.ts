/** Sends requests to an MCP server on Streamable HTTP, and reads the responses. */
import type { Scope } from "effect"
import { Duration, Effect, Option, Schema, Stream } from "effect"
import { Sse } from "effect/encoding"
import type { HttpClientResponse } from "effect/http"
import { HttpClient, HttpClientRequest, HttpTraceContext } from "effect/http"
import { percentDecoded } from "../settings/Masking.ts"
import * as ProcessGroup from "./ProcessGroup.ts"
import { BackendFailed } from "./Transport.ts"

/** The address of a server, and the headers from its entry for every request. */
export interface Target {
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
}

export type Headers = Readonly<Record<string, string | undefined>>

export type Response = HttpClientResponse.HttpClientResponse

export interface Remote {
  /** Sends a request. Succeeds with the response once its header has arrived. The end of the scope aborts the request. */
  readonly send: (
    method: "POST" | "GET" | "DELETE",
    headers: Headers,
    body?: string
  ) => Effect.Effect<Response, BackendFailed, Scope.Scope>
  /** The names of the headers from the server's entry, in lower case. */
  readonly given: ReadonlySet<string>
  /** Makes a failure of the server, with the secrets of its entry masked. */
  readonly failed: (reason: string) => BackendFailed
}

/** How long the gateway waits for a server to accept a cancellation or the end of its session. No client waits for these. */
export const closeTimeout = "5 seconds"

export const make = Effect.fnUntraced(function*(target: Target, mask: (text: string) => string) {
  const client = HttpClient.withScope(yield* HttpClient.HttpClient)
  const { headers, url } = withoutCredentials(target)
  const failed = (reason: string) => new BackendFailed({ reason: mask(reason), stderr: "" })
  const address = mask(new URL(url).host)
  const remote: Remote = {
    failed,
    given: new Set(Object.keys(headers).map((name) => name.toLowerCase())),
    send: (method, own, body) => {
      const accept = method === "GET" ? "text/event-stream" : "application/json, text/event-stream"
      const given = Object.entries({ ...headers, accept, ...own })
      const request = HttpClientRequest.make(method)(url).pipe(
        HttpClientRequest.setHeaders(Object.fromEntries(given.filter(([, value]) => value !== undefined))),
        body === undefined ? (same) => same : HttpClientRequest.bodyText(body, "application/json")
      )
      // Makes its own span. The span of `HttpClient` has the whole URL and all headers, which may hold secrets.
      const attributes = { "http.request.method": method, "server.address": address }
      return Effect.useSpan(`http.client ${method}`, { kind: "client", attributes }, (span) => {
        const traced = HttpClientRequest.setHeaders(request, HttpTraceContext.toHeaders(span))
        return client.execute(traced).pipe(
          Effect.provideService(HttpClient.TracerDisabledWhen, () => true),
          Effect.tap(({ status }) => Effect.sync(() => span.attribute("http.response.status_code", status))),
          Effect.mapError(({ reason }) => failed(unreachable(ProcessGroup.codeOf(reason) || reason._tag)))
        )
      })
    }
  }
  return remote
})

/** Names the error by its code only, because its text may repeat the URL. */
const unreachable = (code: string): string =>
  `the back end cannot be reached (${code}): is its url right, and can this machine reach it?`

/** Moves the credentials of a URL into a header, because logs and errors show URLs but not headers. */
const withoutCredentials = (target: Target): Target => {
  const url = new URL(target.url)
  if (url.username === "" && url.password === "") return target
  const credentials = `${percentDecoded(url.username)}:${percentDecoded(url.password)}`
  url.username = ""
  url.password = ""
  const authorization = `Basic ${Buffer.from(credentials).toString("base64")}`
  return { url: url.href, headers: { ...target.headers, authorization } }
}

/** Whether a status says that the server refuses the gateway's credentials, not the client's request. */
export const isRefusal = (status: number): boolean => status === 401 || status === 403

export const refusal = (status: number): string =>
  `the back end refused the gateway's credentials (status ${status}); check the headers of its entry`

/** Whether a status tells nothing about the era of a server: the server is unavailable, or refuses the gateway. */
export const isNoVerdict = (status: number): boolean =>
  status < 400 || status >= 500 || isRefusal(status) || status === 408 || status === 429

export const isEventStream = ({ headers }: Response): boolean =>
  (headers["content-type"] ?? "").startsWith("text/event-stream")

/** One event of a response's stream. */
export interface Event {
  readonly id: string | undefined
  readonly data: string
  /** How long to wait before the stream is reopened, in milliseconds. `undefined` if the server has not said. */
  readonly retry: number | undefined
}

/** A response ended early, or has a message of more than `maxLineBytes`. */
export class ResponseFailed extends Schema.TaggedError<ResponseFailed>()("ResponseFailed", {
  /** The limit in bytes, if a message exceeds it. Otherwise the response ended early. */
  limit: Schema.optionalKey(Schema.Number)
}) {
  override get message(): string {
    return this.limit === undefined
      ? "the back end's answer ended early"
      : `the back end sent a message of more than ${this.limit} bytes, the limit of the setting maxLineBytes`
  }
}

/** The events of a response's stream. */
export const events = (response: Response, limit: number): Stream.Stream<Event, ResponseFailed> => {
  let parsed: Array<Event> = []
  let retry: number | undefined
  const parser = Sse.makeParser((event) => {
    if (event._tag === "Retry") retry = Duration.toMillis(event.duration)
    else parsed.push({ id: event.id, data: event.data, retry })
  }, { maxEventSize: limit })
  return response.stream.pipe(
    Stream.mapError(() => new ResponseFailed({})),
    Stream.decodeText(),
    Stream.mapEffect((text) => {
      const error = parser.feed(text)
      const events = parsed
      parsed = []
      // The parser applies `maxEventSize` only to incomplete events, so this checks complete ones.
      const isTooLong = error !== undefined || events.some(({ data }) => data.length > limit)
      return isTooLong ? new ResponseFailed({ limit }) : Effect.succeed(events)
    }),
    Stream.flattenIterable
  )
}

/** The message of a response. Reads an event stream to its end, and takes its last message. */
export const textOf = (response: Response, limit: number): Effect.Effect<string, ResponseFailed> => {
  if (isEventStream(response)) {
    const last = Stream.runLast(events(response, limit))
    return Effect.map(last, Option.match({ onNone: () => "", onSome: ({ data }) => data }))
  }
  return Effect.suspend(() => {
    const parts: Array<Uint8Array> = []
    let length = 0
    const read = Stream.runForEach(Stream.mapError(response.stream, () => new ResponseFailed({})), (part) => {
      parts.push(part)
      length += part.length
      return length > limit ? new ResponseFailed({ limit }) : Effect.void
    })
    return Effect.map(read, () => Buffer.concat(parts).toString())
  })
}
