/** A connection to one MCP server that carries JSON-RPC messages: a process, or a stand-in for one. */
import type { Deferred, Effect } from "effect"
import { Schema } from "effect"
import * as JsonRpc from "../protocol/JsonRpc.ts"

/** Receives the messages of a server. */
export interface Receiver {
  /**
   * Takes one message. `request` is the id of the request whose response holds the message, if the transport knows it. Returns false if
   * there is no room for more messages until `room` completes.
   */
  readonly receive: (message: JsonRpc.Message, request?: JsonRpc.Id) => boolean
  /** Takes a text that is not a JSON-RPC message. */
  readonly garbage: (text: string) => void
  readonly room: Effect.Effect<void>
}

/** A connection to one MCP server that carries JSON-RPC messages. */
export interface Transport {
  /** The id of its process, if it is a process. */
  readonly pid: number | undefined
  /** Delivers all messages of the server to a receiver, from the first one on. Call it once. */
  readonly attach: (receiver: Receiver) => Effect.Effect<void>
  /** Sends one message after all earlier ones. False if the server does not read; then call `send`, which waits. */
  readonly offer: (message: JsonRpc.Message) => boolean
  /** Sends one message. Waits while the server does not read. A no-op once the connection has ended. */
  readonly send: (message: JsonRpc.Message) => Effect.Effect<void>
  /** Completes with the reason when the connection ends by itself or the server breaks the protocol. */
  readonly ended: Deferred.Deferred<BackendFailed>
  /** Makes a failure of this connection, with the stderr of its process. */
  readonly failed: (reason: string) => BackendFailed
}

/** Hands a text of the server to its receiver. */
export const deliver = (to: Receiver, text: string, request?: JsonRpc.Id): boolean => {
  const message = JsonRpc.read(text)
  if (message !== undefined) return to.receive(message, request)
  to.garbage(text)
  const error = JsonRpc.errorForTooDeep(text)
  return error === undefined || to.receive(error, request)
}

/** The back end could not be started or reached, or its connection ended. */
export class BackendFailed extends Schema.TaggedError<BackendFailed>()("BackendFailed", {
  reason: Schema.String,
  /** The first and the last lines that its process wrote on stderr. */
  stderr: Schema.String,
  /**
   * The gateway itself could not start the process: it lacked file handles or memory, or the start queue was full for too long. The
   * failure does not count against the back end.
   */
  shortage: Schema.optionalKey(Schema.Boolean),
  /** An HTTP back end answered a request with 404: it no longer knows the session, and has not carried the request out. */
  forgotten: Schema.optionalKey(Schema.Boolean),
  /** The reason for the session's end, in logs and metrics. Default: `backend failed`. */
  ended: Schema.optional(Schema.Literals(["process exited", "client gone"]))
}) {
  override get message(): string {
    return this.stderr === "" ? this.reason : `${this.reason}; its stderr: ${this.stderr}`
  }
}
