/**
 * Works around a fault of Node 24: requests that have a body and offer an upgrade, which the gateway never accepts.
 *
 * If the answer is sent before the whole body has arrived, as a refusal is, Node reads the rest of the body and drops
 * it. After an upgrade offer Node 24 then reads nothing more from that connection, so the client's next request would
 * be lost. So the answer to such a request closes the connection.
 */
import type { Server } from "node:http"

/** Closes the connection after the answer to such a request, unless the body has been read by then. */
export const answer = (server: Server): Server =>
  server.on("request", (request, response) => {
    const { headers } = request
    const hasBody = headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0
    if (headers.upgrade === undefined || !hasBody || !response.shouldKeepAlive) return
    response.shouldKeepAlive = false
    request.once("end", () => {
      response.shouldKeepAlive = true
    })
  })
