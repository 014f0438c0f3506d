/** A connection to one MCP server that carries JSON-RPC messages, one per line: a process, or a stand-in for one. */
import type { Deferred, Effect } from "effect"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import type { BackendFailed } from "../sessions/GatewayErrors.ts"

/** Receives the lines of a server. */
export interface Receiver {
  /**
   * Takes one line. `request` is the id of the request whose response holds the line, if the transport knows it. Returns false if
   * there is no room for more lines until `room` completes.
   */
  readonly receive: (line: string, request?: JsonRpc.Id) => boolean
  readonly room: Effect.Effect<void>
}

export interface Transport {
  /** The id of its process, if it is a process. */
  readonly pid: number | undefined
  /** Delivers all lines of the server to a receiver, from the first one on. Call it once. */
  readonly attach: (receiver: Receiver) => Effect.Effect<void>
  /** Writes one line after all earlier ones. False if the server does not read; then call `send`, which waits. */
  readonly offer: (line: string) => boolean
  /** Writes one line. Waits while the server does not read. A no-op once the connection has ended. */
  readonly send: (line: string) => Effect.Effect<void>
  /** Completes with the reason when the connection ends by itself or the server breaks the protocol. */
  readonly ended: Deferred.Deferred<BackendFailed>
  /** Makes a failure of this connection, with the stderr of its process. */
  readonly failed: (reason: string) => BackendFailed
}
