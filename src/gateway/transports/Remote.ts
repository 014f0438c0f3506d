/** Sends requests to an MCP server on Streamable HTTP, and reads the responses. */
import { ByteSize, Data, Effect, Predicate, Stream } from "effect"
import { Sse } from "effect/encoding"
import type { HttpClientResponse } from "effect/http"
import { Headers, HttpBody, HttpClient, HttpClientRequest, HttpIncomingMessage, HttpTraceContext } from "effect/http"
import type * as Modern from "../protocol/Modern.ts"
import { percentDecoded } from "../settings/Masking.ts"
import * as ProcessGroup from "./ProcessGroup.ts"
import { BackendFailed } from "./Transport.ts"

/** The address of a server, and the headers from its entry for every request. */
export interface Target {
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
}

export type Response = HttpClientResponse.HttpClientResponse

/** Sends requests to one server. */
export type Remote = Effect.Success<ReturnType<typeof make>>

/** How long the gateway waits for a server to accept a cancellation or the end of its session. No client waits for these. */
export const closeTimeout = "5 seconds"

export const make = Effect.fnUntraced(function*(target: Target, mask: (text: string) => string) {
  const client = HttpClient.withScope(yield* HttpClient.HttpClient)
  const { headers, url } = withoutCredentials(target)
  const failed = (reason: string) => new BackendFailed({ reason: mask(reason), stderr: "" })
  const address = mask(new URL(url).host)
  return {
    /** Makes a failure of the server, with the secrets of its entry masked. */
    failed,
    /**
     * Sends a request; a header of the server's entry wins over one in `own`. Succeeds with the response once its header has arrived.
     * The end of the scope aborts the request.
     */
    send: (method: "POST" | "GET" | "DELETE", own: Modern.Headers, body?: string) => {
      const accept = method === "GET" ? "text/event-stream" : "application/json, text/event-stream"
      const request = HttpClientRequest.make(method)(url, {
        headers: Headers.setAll(Headers.fromInput({ accept, ...own }), headers),
        body: body === undefined ? HttpBody.empty : HttpBody.text(body, "application/json")
      })
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

export const isEventStream = ({ headers }: Response): boolean =>
  (headers["content-type"] ?? "").startsWith("text/event-stream")

/** A response has a message of more than `maxLineBytes`. */
export class MessageTooLong extends Data.TaggedError("MessageTooLong")<{ readonly limit: number }> {
  override get message(): string {
    return `the back end sent a message of more than ${this.limit} bytes, the limit of the setting maxLineBytes`
  }
}

const endedEarly = () => new BackendFailed({ reason: "the back end's answer ended early", stderr: "" })

/** The events of a response's stream. */
export const events = (
  response: Response,
  limit: number
): Stream.Stream<Sse.AnyEvent, BackendFailed | MessageTooLong> => {
  let parsed: Array<Sse.AnyEvent> = []
  const parser = Sse.makeParser((event) => void parsed.push(event), { maxEventSize: limit })
  return response.stream.pipe(
    Stream.mapError(endedEarly),
    Stream.decodeText(),
    Stream.mapEffect((text) => {
      const error = parser.feed(text)
      const events = parsed
      parsed = []
      // The parser applies `maxEventSize` only to incomplete events, so this checks complete ones.
      const isTooLong = error !== undefined ||
        events.some((event) => event._tag === "Event" && event.data.length > limit)
      return isTooLong ? new MessageTooLong({ limit }) : Effect.succeed(events)
    }),
    Stream.flattenIterable
  )
}

/** The message of a response. Reads an event stream to its end, and takes its last message. */
export const textOf = (response: Response, limit: number): Effect.Effect<string, BackendFailed | MessageTooLong> =>
  isEventStream(response)
    ? Stream.runFold(events(response, limit), () => "", (last, event) => event._tag === "Event" ? event.data : last)
    : response.text.pipe(
      Effect.provideService(HttpIncomingMessage.MaxBodySize, ByteSize.bytes(limit)),
      Effect.mapError(({ cause }) =>
        Predicate.isTagged(cause, "MaxBytesError") ? new MessageTooLong({ limit }) : endedEarly()
      )
    )
