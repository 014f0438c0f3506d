/**
 * The least that a bridge from Streamable HTTP to stdio can do: no checks, no limits, no time-outs, no end of a session but
 * DELETE. What it costs is the limit that the benchmark measures gateways against. `node bare.ts PORT COMMAND ARGS…`
 */
import { spawn } from "node:child_process"
import type { ServerResponse } from "node:http"
import { createServer } from "node:http"

const [port, command = "", ...args] = process.argv.slice(2)

/** Starts a process; gives the function that hands it a message and the response that waits for its answer. */
const open = () => {
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] })
  const waiting = new Map<unknown, ServerResponse>()
  let rest = ""
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    // A long line comes in many chunks; it is joined once.
    rest += chunk
    if (!chunk.includes("\n")) return
    const lines = rest.split("\n")
    rest = lines.pop() ?? ""
    lines.forEach(receive)
  })
  const receive = (line: string) => {
    const { id, params } = JSON.parse(line)
    const response = waiting.get(id ?? params.progressToken)
    if (id === undefined) {
      if (response?.headersSent === false) response.writeHead(200, { "content-type": "text/event-stream" })
      return void response?.write(`data: ${line}\n\n`)
    }
    waiting.delete(id)
    if (response?.headersSent === true) return void response.end(`data: ${line}\n\n`)
    response?.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(line) }).end(
      line
    )
  }
  const send = (text: string, response: ServerResponse) => {
    const { id } = JSON.parse(text)
    if (id === undefined) response.writeHead(202).end()
    else waiting.set(id, response)
    child.stdin.write(`${text}\n`)
  }
  return { send, end: () => child.stdin.end() }
}

const sessions = new Map<string, ReturnType<typeof open>>()

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
    if (session === undefined) sessions.set(id, session = open())
    response.setHeader("mcp-session-id", id)
    session.send(text, response)
  })
}).listen(Number(port), "127.0.0.1")
