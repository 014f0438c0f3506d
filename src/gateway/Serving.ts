/** What the handlers of MCP requests share: what they serve from, and one request as far as it has been checked. */
import type { FileSystem } from "effect"
import { Deferred } from "effect"
import type { HttpServerRequest } from "effect/http"
import * as EventStreamBody from "./EventStreamBody.ts"
import type * as Parked from "./Parked.ts"
import type { Principal } from "./Registry.ts"
import type { Sessions } from "./Sessions.ts"
import type * as Settings from "./Settings.ts"

export interface Serving {
  readonly sessions: Sessions["Service"]
  readonly settings: Settings.GatewaySettings
  readonly parked: Parked.Parked
  /** Completes when the gateway takes nothing new any more. */
  readonly draining: Deferred.Deferred<void>
  readonly fs: FileSystem.FileSystem
  /** The event streams that are being sent. */
  readonly bodies: Set<EventStreamBody.OpenBody>
}

/** A request that has come in: by host, origin and key it may, and there is such a back end. */
export interface Asking {
  readonly request: HttpServerRequest.HttpServerRequest
  readonly backend: string
  readonly principal: Principal
  /** What its header says of the revision. */
  readonly version: string | undefined
  readonly lastEventId: string | undefined
}

/** For a stream that goes on until the answer to its request. */
export const streamOptions = (
  { bodies, settings }: Serving,
  request: HttpServerRequest.HttpServerRequest
): EventStreamBody.Options => ({
  heartbeat: settings.heartbeat,
  bodies,
  greet: false,
  until: undefined,
  client: EventStreamBody.clientOf(request)
})

/** For a stream of who only listens: it ends with the gateway. */
export const listenOptions = (
  serving: Serving,
  request: HttpServerRequest.HttpServerRequest
): EventStreamBody.Options => ({
  ...streamOptions(serving, request),
  greet: true,
  until: Deferred.await(serving.draining)
})

/** What the official clients send, on every request. */
const usualAccept = "application/json, text/event-stream"

/** Whether the client takes a response of this type. */
export const accepts = ({ headers }: HttpServerRequest.HttpServerRequest, type: string): boolean =>
  headers["accept"] === usualAccept || (headers["accept"] ?? "").split(",").some((range) => {
    const [name = ""] = range.trim().toLowerCase().split(";")
    return name === type || name === "*/*" || name === `${type.split("/")[0]}/*`
  })
