/**
 * The least code that does the same as `bare.ts` on the router and the server of `effect/http`. A streamed answer is an
 * `HttpServerResponse.stream`. `node effectHttp.ts PORT COMMAND ARGS…`
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Array as Arr, Cause, Effect, Layer, Stream } from "effect"
import type { HttpServerRequest } from "effect/http"
import { HttpRouter, HttpServerResponse } from "effect/http"
import { createServer } from "node:http"
import type { RawChild } from "./rawChild.ts"
import * as Child from "./rawChild.ts"

const [port, command = "", ...args] = process.argv.slice(2)

const sessions = new Map<string, RawChild>()

const handle = (request: HttpServerRequest.HttpServerRequest) => {
  const id = request.headers["mcp-session-id"] ?? crypto.randomUUID()
  if (request.method === "DELETE") {
    sessions.get(id)?.end()
    sessions.delete(id)
    return Effect.succeed(HttpServerResponse.empty({ status: 204 }))
  }
  return Effect.flatMap(request.text, (text) => {
    let session = sessions.get(id)
    if (session === undefined) sessions.set(id, session = Child.open(command, args))
    return answer(session, text, { "mcp-session-id": id })
  })
}

const encoder = new TextEncoder()

const answer = (session: RawChild, text: string, headers: Record<string, string>) =>
  Effect.callback<HttpServerResponse.HttpServerResponse>((resume) => {
    const events: Array<Uint8Array> = []
    let [streams, ended] = [false, false]
    let wake: (() => void) | undefined
    const ready = Effect.callback<void>((resume) => {
      if (events.length > 0 || ended) return resume(Effect.void)
      wake = () => resume(Effect.void)
    })
    const take = Effect.andThen(
      ready,
      Effect.suspend(() => {
        wake = undefined
        const taken = events.splice(0)
        return Arr.isReadonlyArrayNonEmpty(taken) ? Effect.succeed(taken) : Cause.done()
      })
    )
    const isRequest = session.send(text, (line, isAnswer) => {
      if (isAnswer && !streams) {
        return resume(Effect.succeed(HttpServerResponse.text(line, { contentType: "application/json", headers })))
      }
      events.push(encoder.encode(`data: ${line}\n\n`))
      ended = isAnswer
      wake?.()
      if (streams) return
      streams = true
      const body = Stream.fromPull(Effect.succeed(take))
      resume(Effect.succeed(HttpServerResponse.stream(body, { contentType: "text/event-stream", headers })))
    })
    if (!isRequest) resume(Effect.succeed(HttpServerResponse.empty({ status: 202, headers })))
  })

HttpRouter.serve(HttpRouter.add("*", "/mcp", handle), { disableLogger: true, disableListenLog: true }).pipe(
  Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: Number(port) })),
  Layer.launch,
  NodeRuntime.runMain
)
