/**
 * Holds requests while no route is listening: before the routes are up, and after they are gone. Node would drop them, and their
 * clients would wait forever.
 */
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import * as JsonRpc from "../messages/JsonRpc.ts"

/**
 * Lets requests wait until somebody listens for them. A server that is being closed answers them with 503 instead: it waits
 * for its connections to end, and these would not.
 */
export const hold = (server: Server): Server => {
  const held = new Map<IncomingMessage, ServerResponse>()
  let closing = false
  const take = (request: IncomingMessage, response: ServerResponse) => {
    if (closing) return turnAway(request, response)
    held.set(request, response)
    // Nobody waits any more.
    response.once("close", () => held.delete(request))
  }
  const release = (event: string | symbol) => {
    if (event !== "request") return
    server.off("newListener", release).off("request", take).on("removeListener", takeBack)
    // The listener is told of before it is added.
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
  // With its body unread the connection would be reset, and the answer lost with it.
  request.resume()
  response.writeHead(503, { "content-type": "application/json", "retry-after": "10", connection: "close" })
  response.end(JsonRpc.error(null, JsonRpc.codes.gateway, "The gateway is shutting down"))
}
