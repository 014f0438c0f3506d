/**
 * The least code that bridges Streamable HTTP to stdio: no checks, limits or time-outs, and only DELETE ends a session. The benchmark
 * compares gateways with its cost. `node bare.ts PORT COMMAND ARGS…`
 */
import type { ServerResponse } from "node:http"
import { createServer } from "node:http"
import type { RawChild, Receiver } from "./rawChild.ts"
import * as Child from "./rawChild.ts"

const [port, command = "", ...args] = process.argv.slice(2)

const answer = (response: ServerResponse): Receiver => (line, isAnswer) => {
  if (!isAnswer) {
    if (!response.headersSent) response.writeHead(200, { "content-type": "text/event-stream" })
    return void response.write(`data: ${line}\n\n`)
  }
  if (response.headersSent) return void response.end(`data: ${line}\n\n`)
  response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(line) }).end(line)
}

const sessions = new Map<string, RawChild>()

createServer((request, response) => {
  const id = String(request.headers["mcp-session-id"] ?? crypto.randomUUID())
  if (request.method === "DELETE") {
    sessions.get(id)?.end()
    sessions.delete(id)
    return void response.writeHead(204).end()
  }
  let text = ""
  request.setEncoding("utf8").on("data", (chunk) => text += chunk).on("end", () => {
    let session = sessions.get(id)
    if (session === undefined) sessions.set(id, session = Child.open(command, args))
    response.setHeader("mcp-session-id", id)
    if (!session.send(text, answer(response))) response.writeHead(202).end()
  })
}).listen(Number(port), "127.0.0.1")
