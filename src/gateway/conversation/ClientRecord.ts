/**
 * The messages with which a session's client set up its server: enough to bring a new process to the same state. A
 * session that sleeps consists of this record alone.
 */
import { Predicate } from "effect"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import { version } from "../protocol/version.ts"

export interface ClientRecord {
  /** The client's `initialize`, as received. */
  readonly initialize: string
  readonly id: JsonRpc.Id
  /** The client's name and version, from its `clientInfo`. */
  readonly client: string | undefined
  initialized: string | undefined
  /** The newest `logging/setLevel`, as received. */
  level: string | undefined
  /** The `resources/subscribe` requests by URI, as received. */
  readonly subscriptions: Map<string, string>
  /** True if the session has been ended. It then must not wake. */
  over: boolean
  /** Called after each change. */
  changed: () => void
}

/** More subscriptions than this are not remembered. */
const maxSubscriptions = 1000

export const make = (id: JsonRpc.Id, initialize: string, params: unknown): ClientRecord => ({
  initialize,
  id,
  client: clientName(params),
  initialized: undefined,
  level: undefined,
  subscriptions: new Map(),
  over: false,
  changed: () => {}
})

/** The record of the gateway itself, as a client without capabilities. A healthy server starts for it. */
export const neutral = (): ClientRecord => {
  const [id, clientInfo] = [0, { name: "effect-session-pool", version }]
  const params = { protocolVersion: Modern.legacyVersions.at(-1), capabilities: {}, clientInfo }
  return make(id, JSON.stringify({ jsonrpc: "2.0", id, method: "initialize", params }), params)
}

/** Records a message of the client if a new process would need it, too. */
export const note = (record: ClientRecord, method: string, params: unknown, text: string): void => {
  if (!noted.includes(method)) return
  if (method === "notifications/initialized") record.initialized = text
  else if (method === "logging/setLevel") record.level = text
  else if (method === "resources/subscribe" || method === "resources/unsubscribe") {
    const uri = stringField(params, "uri")
    if (uri === undefined) return
    record.subscriptions.delete(uri)
    if (method === "resources/subscribe" && record.subscriptions.size < maxSubscriptions) {
      record.subscriptions.set(uri, text)
    }
  }
  record.changed()
}

const noted = ["notifications/initialized", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"]

const clientName = (params: unknown): string | undefined => {
  const info = Predicate.hasProperty(params, "clientInfo") ? params.clientInfo : undefined
  const name = stringField(info, "name")
  if (name === undefined) return undefined
  return `${name} ${stringField(info, "version") ?? ""}`.trim().slice(0, 100)
}

const stringField = (value: unknown, name: string): string | undefined =>
  Predicate.hasProperty(value, name) && typeof value[name] === "string" ? value[name] : undefined
