/** A proxy that serves a gateway under a prefix, as `deploy/nginx.conf` does. It ends with its test. */
import { createServer, request } from "node:http"
import { onTestFinished } from "vitest"
import * as Kit from "./gateway.ts"

/** Returns the origin. `headersOf` returns headers to add to those of the client. */
export const start = async (
  target: string,
  prefix: string,
  headersOf: (headers: Record<string, unknown>) => object = (headers) => headers
): Promise<string> => {
  const proxy = createServer((incoming, response) => {
    const { headers, method = "GET", url = "" } = incoming
    if (!url.startsWith(prefix)) return response.writeHead(404).end()
    const outgoing = request(
      `${target}/${url.slice(prefix.length).replace(/^\//, "")}`,
      { method, headers: { ...headers, ...headersOf(headers) } },
      (answer) => answer.pipe(response.writeHead(answer.statusCode ?? 0, answer.headers))
    )
    response.on("close", () => outgoing.destroy())
    incoming.pipe(outgoing.on("error", () => response.destroy()))
  }).listen(0, "127.0.0.1")
  await new Promise((resolve) => proxy.once("listening", resolve))
  onTestFinished(() => {
    proxy.closeAllConnections()
    proxy.close()
  })
  return `http://127.0.0.1:${Kit.portOf(proxy)}`
}
