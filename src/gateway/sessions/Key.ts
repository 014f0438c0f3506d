/** The keys of the gateway's pool: who uses which back end. */
import { Equal, Hash } from "effect"
import type { ClientRecord } from "../conversation/ClientRecord.ts"
import type { Identity } from "./Identity.ts"

const lightSuffix = "-light"

/** The id of a light session (`LightSession`). Its form tells every later request what kind of session it asks for. */
export const lightId = (id: string): string => `${id}${lightSuffix}`

/**
 * The key of a session, or of a lane of a modern caller. It contains the principal that opened the session, so for another principal the
 * session does not exist.
 */
export class Key implements Equal.Equal {
  readonly backend: string
  /** Only its id is compared. */
  readonly principal: Identity
  /** The id of the session, or of the caller, which all lanes of the caller share. */
  readonly id: string
  /** The number of the lane; `undefined` for a session. */
  readonly lane: number | undefined
  /** The record of the client that opens the session with this key. Not compared. */
  readonly record: ClientRecord | undefined
  /** Equal for equal keys only. */
  readonly text: string

  constructor(backend: string, principal: Identity, id: string, lane?: number, record?: ClientRecord) {
    this.backend = backend
    this.principal = principal
    this.id = id
    this.lane = lane
    this.record = record
    this.text = JSON.stringify([backend, principal.id, id, lane])
  }

  /** True for the key of a light session. */
  get isLight(): boolean {
    return this.id.endsWith(lightSuffix)
  }

  [Equal.symbol](that: unknown): boolean {
    return that instanceof Key && that.text === this.text
  }

  [Hash.symbol](): number {
    return Hash.string(this.text)
  }
}
