/**
 * Requests that offer an upgrade, which none is given. What comes behind such a request in the same bytes Node 24 loses, be it the
 * rest of its body or the next request, and it may hear nothing on that connection afterwards. So each such answer says that the
 * connection is closed, and is the last on it.
 */
import type { Server } from "node:http"

/** Has the answers of a server say so. */
export const answer = (server: Server): Server =>
  server.on("request", (request, response) => {
    if (request.headers.upgrade !== undefined) response.shouldKeepAlive = false
  })
