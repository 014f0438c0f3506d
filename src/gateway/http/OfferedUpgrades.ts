/**
 * Requests that offer an upgrade, which none is given, and have a body. Where the answer comes before the whole body, as a refusal
 * does, what remains of it is read away; after an offer Node 24 then hears nothing more on that connection, and the client's next
 * request would be lost. So such an answer says that the connection is closed.
 */
import type { Server } from "node:http"

/** Has the answers of a server say so, unless the body has been read by then. */
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
