/**
 * `effectHttp.ts` in two processes. The first forwards each request to the second by `effect/rpc`. This is the least that two replicas
 * written with these modules can do. `node effectForward.ts front PORT BACK_PORT` forwards, and
 * `node effectForward.ts back PORT COMMAND ARGS…` answers.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as NodeSocketServer from "@effect/platform-node/NodeSocketServer"
import { Effect, Layer, Schema } from "effect"
import type { HttpServerRequest } from "effect/http"
import { HttpRouter, HttpServerResponse } from "effect/http"
import { Rpc, RpcClient, RpcGroup, RpcSerialization, RpcServer } from "effect/rpc"
import { createServer } from "node:http"
import type { RawChild } from "./rawChild.ts"
import * as Child from "./rawChild.ts"

const [end, given, ...rest] = process.argv.slice(2)
const port = Number(given)
const host = "127.0.0.1"

/** A message of a session, and its answer. A notification has none. */
const Peers = RpcGroup.make(
  Rpc.make("CarryOut", {
    payload: { session: Schema.String, body: Schema.String },
    success: Schema.NullOr(Schema.Uint8Array)
  })
)

const serialization = RpcSerialization.layerSchemaBinary({ maxFrameSize: "unbounded" })

const front = Layer.unwrap(Effect.map(RpcClient.make(Peers, { disableTracing: true }), (client) => {
  const handle = (request: HttpServerRequest.HttpServerRequest) => {
    const session = request.headers["mcp-session-id"] ?? crypto.randomUUID()
    const headers = { "mcp-session-id": session }
    return Effect.map(
      // DELETE has no body.
      Effect.flatMap(request.text, (body) => client.CarryOut({ session, body })),
      (answer) =>
        answer === null
          ? HttpServerResponse.empty({ status: 202, headers })
          : HttpServerResponse.uint8Array(answer, { contentType: "application/json", headers })
    )
  }
  return HttpRouter.serve(HttpRouter.add("*", "/mcp", handle), { disableLogger: true, disableListenLog: true })
})).pipe(
  Layer.provide([
    NodeHttpServer.layer(createServer, { host, port }),
    RpcClient.layerProtocolSocket().pipe(
      Layer.provide([NodeSocket.layerNet({ host, port: Number(rest[0]), noDelay: true }), serialization])
    )
  ])
)

const sessions = new Map<string, RawChild>()
const encoder = new TextEncoder()

const back = RpcServer.layer(Peers, { disableTracing: true }).pipe(
  Layer.provide(Peers.toLayer({
    CarryOut: ({ body, session: id }) =>
      Effect.callback<Uint8Array | null>((resume) => {
        const [command = "", ...args] = rest
        let session = sessions.get(id)
        if (session === undefined) sessions.set(id, session = Child.open(command, args))
        if (body === "") session.end()
        const isRequest = body !== "" && session.send(body, (line) => resume(Effect.succeed(encoder.encode(line))))
        if (!isRequest) resume(Effect.succeed(null))
      })
  })),
  Layer.provide(RpcServer.layerProtocolSocketServer),
  Layer.provide([NodeSocketServer.layer({ host, port, noDelay: true }), serialization])
)

if (end === "front") NodeRuntime.runMain(Layer.launch(front))
else NodeRuntime.runMain(Layer.launch(back))
