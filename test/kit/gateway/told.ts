/** A session on a scripted server: without a process, and on the clock of the test. */
import { Context, Deferred, Duration, Effect } from "effect"
import * as Bridge from "../../../src/gateway/conversation/Bridge.ts"
import type { Limits } from "../../../src/gateway/conversation/BridgeRequests.ts"
import * as ClientRecord from "../../../src/gateway/conversation/ClientRecord.ts"
import * as JsonRpc from "../../../src/gateway/protocol/JsonRpc.ts"
import * as GatewayMetrics from "../../../src/gateway/telemetry/GatewayMetrics.ts"
import { BackendFailed, deliver } from "../../../src/gateway/transports/Transport.ts"
import type { Receiver, Transport } from "../../../src/gateway/transports/Transport.ts"
import * as Kit from "./gateway.ts"

export const metrics = GatewayMetrics.make("test", Context.empty(), GatewayMetrics.totals())

/** Limits without time-outs. `maxEvents` are held for clients that resume. */
export const patient = (maxEvents: number, maxBytes = 1_000_000): Limits => ({
  requestTimeout: Duration.infinity,
  streamAfter: Duration.infinity,
  streamLostTimeToLive: Duration.infinity,
  maxInFlight: 10,
  replay: { maxEvents, maxBytes }
})

const unattached = () => {
  throw new Error("no receiver is attached")
}

/** Parses a request. */
export const requestOf = (text: string): JsonRpc.Request => {
  const message = JsonRpc.read(text)
  if (message?._tag !== "Request") throw new Error(`no request: ${text}`)
  return message
}

/** A server that answers `initialize`, and sends other messages by `say`. */
export const make = () => {
  const state: { receiver: Receiver | undefined } = { receiver: undefined }
  /** The messages that it received, by id or, without one, by method. */
  const heard: Array<string | number> = []
  /** Sends a message to the gateway. False if the gateway has no room for more. */
  const say = (message: object) =>
    state.receiver === undefined
      ? unattached()
      : deliver(state.receiver, JSON.stringify({ jsonrpc: "2.0", ...message }))
  const offer = ({ text }: JsonRpc.Message) => {
    const { id, method } = JSON.parse(text)
    heard.push(id ?? method)
    if (method === "initialize") say({ id, result: { protocolVersion: "2025-06-18", capabilities: {} } })
    return true
  }
  const transport: Transport = {
    pid: undefined,
    attach: (receiver) =>
      Effect.sync(() => {
        state.receiver = receiver
      }),
    offer,
    send: (message) => Effect.sync(() => void offer(message)),
    ended: Deferred.makeUnsafe(),
    failed: (reason) => new BackendFailed({ reason, stderr: "" })
  }
  const room = Effect.suspend(() => state.receiver?.room ?? unattached())
  const progress = (progressToken: string | number, size = 0) => (progress: number) =>
    say({ method: "notifications/progress", params: { progressToken, progress, message: "x".repeat(size) } })
  return { transport, heard, say, room, progress }
}

export type Server = ReturnType<typeof make>

/** The session of a legacy client on such a server; `between` may stand between the two. */
export const open = Effect.fnUntraced(function*(
  limits: Limits,
  between: (transport: Transport) => Transport = (transport) => transport
) {
  const server = make()
  const record = ClientRecord.make(requestOf(Kit.initializeBody))
  return { server, bridge: yield* Bridge.make(Effect.succeed(between(server.transport)), record, limits, metrics) }
})

/** A call of its client, with a progress token, which is the id. */
export const request = (bridge: Pick<Bridge.Bridge, "requests">, id: number, tool = "anything", args = {}) => {
  const taken = bridge.requests.request(requestOf(Kit.toolCall(id, tool, args)), Effect.void)
  if (taken._tag !== "Running") throw new Error(`not taken on: ${taken._tag}`)
  return taken
}
