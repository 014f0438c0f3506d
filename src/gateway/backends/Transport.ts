/** A connection to one MCP server that takes and gives JSON-RPC messages, one a line: a process, or what stands for one. */
import type { Deferred, Effect } from "effect"
import type { BackendFailed } from "../GatewayErrors.ts"

/** Where the lines of a server go. */
export interface Receiver {
  /** Takes one line; false: there is no room for more until `room` says so. */
  readonly receive: (line: string) => boolean
  readonly room: Effect.Effect<void>
}

export interface Transport {
  /** Of its process, if it has one here. */
  readonly pid: number | undefined
  /** Hands the lines of the server to a receiver, from the first on; to be called once. */
  readonly attach: (receiver: Receiver) => Effect.Effect<void>
  /** Writes one line at once, after all earlier ones; false: the server does not read, and `send` must wait. */
  readonly offer: (line: string) => boolean
  /** Writes one line. Waits while the server does not read; does nothing once it has ended. */
  readonly send: (line: string) => Effect.Effect<void>
  /** Completes when the connection has ended by itself or the server broke the protocol, with why. */
  readonly ended: Deferred.Deferred<BackendFailed>
  /** A failure of it, with the end of what its process has written on stderr. */
  readonly failed: (reason: string) => BackendFailed
}
