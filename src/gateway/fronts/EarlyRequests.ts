/**
 * Holds requests while no route listens: before the routes are installed, and after they are removed. Node would drop
 * such requests, and their clients would wait forever.
 */
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import * as JsonRpc from "../protocol/JsonRpc.ts"

/**
 * Queues requests until a listener is added. A closing server answers them with 503 instead: it waits for its
 * connections to end, and a queued request would keep its connection open.
 */
export const hold = (server: Server): Server => {
  const held = new Map<IncomingMessage, ServerResponse>()
  let closing = false
  const take = (request: IncomingMessage, response: ServerResponse) => {
    if (closing) return turnAway(request, response)
    held.set(request, response)
    // The request needs no answer any more: it has one, or its client has disconnected.
    response.once("close", () => held.delete(request))
  }
  const release = (event: string | symbol) => {
    if (event !== "request") return
    server.off("newListener", release).off("request", take).on("removeListener", takeBack)
    // Node emits `newListener` before it adds the listener.
    queueMicrotask(() => {
      for (const [request, response] of held) server.emit("request", request, response)
      held.clear()
    })
  }
  const takeBack = (event: string | symbol) => {
    if (event === "request" && server.listenerCount("request") === 0) server.on("request", take)
  }
  const close = server.close.bind(server)
  server.close = (callback) => {
    closing = true
    for (const [request, response] of held) turnAway(request, response)
    held.clear()
    return close(callback)
  }
  return server.on("request", take).on("newListener", release)
}

const turnAway = (request: IncomingMessage, response: ServerResponse) => {
  // Reads the body to its end. With an unread body the connection would be reset, and the client would lose the answer.
  request.resume()
  response.writeHead(503, { "content-type": "application/json", "retry-after": "10", connection: "close" })
  response.end(JsonRpc.error(null, JsonRpc.codes.gateway, "The gateway is shutting down"))
}
