/** A collector of OpenTelemetry's, over HTTP with JSON, that keeps what it is sent. */
import { createServer } from "node:http"
import { eventually } from "./gateway.ts"

export interface Span {
  readonly name: string
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId?: string
}

export interface Collector {
  /** For `OTEL_EXPORTER_OTLP_ENDPOINT`. */
  readonly url: string
  /** The bodies that came to a path, or to all. */
  readonly bodies: (path?: string) => ReadonlyArray<string>
  readonly spans: () => ReadonlyArray<Span>
  readonly stop: () => void
}

export const start = async (): Promise<Collector> => {
  const received: Array<{ readonly path: string; readonly body: string }> = []
  const server = createServer((request, response) => {
    let body = ""
    request.on("data", (chunk) => {
      body += chunk
    }).on("end", () => {
      received.push({ path: request.url ?? "", body })
      response.end("{}")
    })
  }).listen(0, "127.0.0.1")
  await eventually("the collector listens", () => server.listening)
  const address = server.address()
  const bodies = (path?: string) =>
    received.filter((each) => path === undefined || each.path === path).map(({ body }) => body)
  return {
    url: `http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`,
    bodies,
    spans: () =>
      bodies("/v1/traces").flatMap((body) =>
        JSON.parse(body).resourceSpans.flatMap((
          resource: { scopeSpans: ReadonlyArray<{ spans: ReadonlyArray<Span> }> }
        ) => resource.scopeSpans.flatMap(({ spans }) => spans))
      ),
    stop: () => {
      server.closeAllConnections()
      server.close()
    }
  }
}
