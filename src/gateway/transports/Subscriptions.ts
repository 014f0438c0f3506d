/**
 * The subscriptions of a legacy session, as one `subscriptions/listen` request to a modern server
 * (basic/patterns/subscriptions in the specification).
 *
 * A listen cannot be changed, so a new one replaces it. The server acknowledges the new listen before the old one is cancelled.
 * The client hears once of a change that both report in between.
 */
import * as Json from "../protocol/Json.ts"

/** The lists of a server that can change. */
export const lists = ["tools", "prompts", "resources"] as const
export type List = typeof lists[number]

/** What `Subscriptions` needs from its owner, `LegacyFace`. */
export interface Connection {
  /** Sends a listen and returns its number. */
  readonly open: (filter: Json.JsonObject) => number
  /** Cancels a listen. */
  readonly cancel: (number: number) => void
  /** Notifies the client of a change. */
  readonly tell: (method: string, params: object) => void
  readonly after: (millis: number, what: () => void) => void
}

interface Listen {
  readonly number: number
  readonly uris: ReadonlyArray<string>
  /** How often each change was reported on this listen, counted while another listen is open too. */
  readonly told: Map<string, number>
}

/** Gets the reason why a subscription was refused, or `undefined`. */
type Done = (refused: string | undefined) => void

/** Most resources that one session may subscribe to. */
const maxUris = 1000
/** How long an old listen stays open after the new one began, in milliseconds. It may still bring changes that were in flight. */
const linger = 500
/** The wait before a lost listen is reopened, in milliseconds. It doubles with each failure, up to `longestPause`. */
const shortestPause = 500
const longestPause = 30_000

export class Subscriptions {
  readonly #connection: Connection
  /** The subscribed resources. Each has the callbacks that wait for the server's acknowledgement: none once it has come. */
  readonly #uris = new Map<string, Array<Done>>()
  #lists: ReadonlyArray<List> = []
  /** False while there must be no listen, because no client would hear of changes. */
  #isHeard: boolean
  /** The active listen, the one that will replace it, and the one that it has replaced. */
  #current: Listen | undefined
  #next: Listen | undefined
  #old: Listen | undefined
  /** Whether the subscriptions have changed since `#next` was opened. */
  #changed = false
  /** Whether the client may have missed changes since it subscribed: a listen was lost or ended, or has not begun. */
  #lost = false
  #failures = 0

  constructor(connection: Connection, isHeard = true) {
    this.#connection = connection
    this.#isHeard = isHeard
  }

  /** Opens the listen, or ends it. While it is ended, every subscription is accepted. */
  setHeard(isHeard: boolean): void {
    this.#isHeard = isHeard
    if (isHeard) return this.#refresh()
    for (const listen of [this.#old, this.#current, this.#next]) {
      if (listen !== undefined) this.#connection.cancel(listen.number)
    }
    this.#lost ||= this.#current !== undefined
    this.#old = this.#current = this.#next = undefined
    for (const waiters of this.#uris.values()) for (const done of waiters.splice(0)) done(undefined)
  }

  /** Subscribes to changes of these lists. */
  start(lists: ReadonlyArray<List>): void {
    this.#lists = lists
    if (lists.length > 0) this.#refresh()
  }

  /** Subscribes to a resource. */
  add(uri: string, done: Done): void {
    const waiters = this.#uris.get(uri)
    if (waiters !== undefined) return waiters.length > 0 ? void waiters.push(done) : done(undefined)
    if (this.#uris.size >= maxUris) return done(`a session may subscribe to at most ${maxUris} resources`)
    if (!this.#isHeard) {
      this.#uris.set(uri, [])
      this.#lost = true
      return done(undefined)
    }
    this.#uris.set(uri, [done])
    this.#refresh()
  }

  remove(uri: string): void {
    this.#settle(uri, "the client unsubscribed in the meantime")
    if ([this.#current, this.#next].some((listen) => listen?.uris.includes(uri))) this.#refresh()
  }

  /** Records that the server has acknowledged a listen. `honoured` is the filter that the server accepted. */
  acknowledged(number: number, honoured: unknown): void {
    const begun = this.#next
    if (begun?.number !== number) return
    this.#retire()
    if (this.#current !== undefined) {
      const old = this.#old = { ...this.#current, told: new Map() }
      this.#connection.after(linger, () => this.#old === old && this.#retire())
    }
    this.#current = begun
    this.#next = undefined
    this.#failures = 0
    const given = Json.field(honoured, "resourceSubscriptions")
    for (const uri of begun.uris) {
      const isReported = Array.isArray(given) && given.includes(uri)
      this.#settle(uri, isReported ? undefined : "the server does not report its changes")
    }
    if (this.#lost) this.#tellAll(begun)
    this.#lost = false
    if (this.#changed) this.#refresh()
  }

  /** Records that the server reported a change on a listen. Returns whether the client should hear of it. */
  hears(number: number, change: string): boolean {
    const isOld = number === this.#old?.number
    const [listen, other] = isOld ? [this.#old, this.#current] : [this.#current, this.#old]
    if (listen?.number !== number) return false
    if (other === undefined) return true
    const count = (listen.told.get(change) ?? 0) + 1
    listen.told.set(change, count)
    return count > (other.told.get(change) ?? 0)
  }

  /** Records that the server ended or refused a listen. `again` says whether to try again later. */
  ended(number: number, why: string, again: boolean): void {
    if (number === this.#current?.number) {
      this.#current = undefined
      this.#lost = true
      if (this.#next === undefined) this.#retry()
    } else if (number === this.#next?.number) {
      const { uris } = this.#next
      this.#next = undefined
      for (const uri of uris.filter((uri) => this.#uris.get(uri)?.length)) this.#settle(uri, why)
      if (this.#changed) this.#refresh()
      else if (again && this.#current === undefined) this.#retry()
    }
  }

  /** Opens a listen for the present subscriptions, unless one is being opened. */
  #refresh(): void {
    if (!this.#isHeard) return
    this.#changed = this.#next !== undefined
    if (this.#changed) return
    if (this.#uris.size === 0 && this.#lists.length === 0) {
      if (this.#current !== undefined) this.#connection.cancel(this.#current.number)
      this.#current = undefined
      return
    }
    const uris = [...this.#uris.keys()]
    const filter = {
      ...Object.fromEntries(this.#lists.map((list) => [`${list}ListChanged`, true])),
      resourceSubscriptions: uris.length > 0 ? uris : undefined
    }
    this.#next = { number: this.#connection.open(filter), uris, told: new Map() }
  }

  #retire(): void {
    if (this.#old !== undefined) this.#connection.cancel(this.#old.number)
    this.#old = undefined
  }

  /** Tells the waiters of a resource that it is subscribed to, or why it is not. */
  #settle(uri: string, refused: string | undefined): void {
    const waiters = this.#uris.get(uri)?.splice(0) ?? []
    if (refused !== undefined) this.#uris.delete(uri)
    for (const done of waiters) done(refused)
  }

  #retry(): void {
    const pause = Math.min(longestPause, shortestPause * 2 ** this.#failures++)
    this.#connection.after(pause, () => this.#current === undefined && this.#refresh())
  }

  /** Notifies the client of everything that may have changed while there was no listen. */
  #tellAll({ uris }: Listen): void {
    const { tell } = this.#connection
    for (const list of this.#lists) tell(`notifications/${list}/list_changed`, {})
    for (const uri of uris) tell("notifications/resources/updated", { uri })
  }
}
