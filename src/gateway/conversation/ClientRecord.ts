/**
 * The messages with which a session's client set up its server: enough to bring a new process to the same state. A
 * session that sleeps consists of this record alone.
 */
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import { version } from "../protocol/version.ts"

export interface ClientRecord {
  readonly initialize: JsonRpc.Request
  /** The client's name and version, from its `clientInfo`. */
  readonly client: string | undefined
  initialized: JsonRpc.Notification | undefined
  /** The newest `logging/setLevel`. */
  level: JsonRpc.Request | undefined
  /** The `resources/subscribe` requests by URI. */
  readonly subscriptions: Map<string, JsonRpc.Request>
  /** True if the session has been ended. It then must not wake. */
  over: boolean
  /** Called after each change. */
  changed: () => void
}

/** More subscriptions than this are not remembered. */
const maxSubscriptions = 1000

export const make = (initialize: JsonRpc.Request): ClientRecord => ({
  initialize,
  client: Modern.nameOf(Json.field(initialize.params, "clientInfo")),
  initialized: undefined,
  level: undefined,
  subscriptions: new Map(),
  over: false,
  changed: () => {}
})

/** The record of the gateway itself, as a client without capabilities. A healthy server starts for it. */
export const neutral = (): ClientRecord => {
  const clientInfo = { name: "effect-session-pool", version }
  return make(JsonRpc.request(0, "initialize", {
    protocolVersion: Modern.legacyVersions.at(-1),
    capabilities: {},
    clientInfo
  }))
}

/** Records a message of the client if a new process would need it, too. */
export const note = (record: ClientRecord, message: JsonRpc.Message): void => {
  if (message._tag === "Notification" && message.method === "notifications/initialized") record.initialized = message
  else if (message._tag !== "Request") return
  else if (message.method === "logging/setLevel") record.level = message
  else if (message.method === "resources/subscribe" || message.method === "resources/unsubscribe") {
    const uri = Json.field(message.params, "uri")
    if (typeof uri !== "string") return
    record.subscriptions.delete(uri)
    if (message.method === "resources/subscribe" && record.subscriptions.size < maxSubscriptions) {
      record.subscriptions.set(uri, message)
    }
  } else return
  record.changed()
}
