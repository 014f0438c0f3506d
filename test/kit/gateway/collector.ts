/** A collector of OpenTelemetry, over HTTP with JSON. It records what it receives, and ends with its test. */
import * as Serving from "./serving.ts"

export const start = async () => {
  const received: Array<{ readonly path: string; readonly body: string }> = []
  const url = await Serving.upstream((response, _, request, body) => {
    received.push({ path: request.url ?? "", body })
    response.end("{}")
  })
  /** The bodies that came to a path, or to all. */
  const bodies = (path?: string) =>
    received.filter((each) => path === undefined || each.path === path).map(({ body }) => body)
  return { url, bodies }
}
