/**
 * The subscriptions of a legacy session, as one `subscriptions/listen` request to a modern server
 * (basic/patterns/subscriptions in the specification).
 *
 * A listen cannot be changed, so a new one replaces it. The server acknowledges the new listen before the old one is cancelled.
 * The client hears once of a change that both report in between.
 */
import { Predicate } from "effect"

/** The filter of a listen, as the specification names it. */
export interface Filter {
  readonly toolsListChanged?: boolean
  readonly promptsListChanged?: boolean
  readonly resourcesListChanged?: boolean
  readonly resourceSubscriptions?: ReadonlyArray<string>
}

/** What `Subscriptions` needs from its owner, `LegacyFace`. */
export interface Connection {
  /** Sends a listen and returns its number. */
  readonly open: (filter: Filter) => number
  /** Cancels a listen. */
  readonly cancel: (number: number) => void
  /** Notifies the client of a change. */
  readonly tell: (method: string, params: object) => void
  readonly after: (millis: number, what: () => void) => void
}

export interface Subscriptions {
  /** Subscribes to changes of these lists. */
  readonly start: (lists: Filter) => void
  /** Subscribes to a resource. `done` gets the reason of a refusal, or `undefined`. */
  readonly add: (uri: string, done: (refused: string | undefined) => void) => void
  readonly remove: (uri: string) => void
  /** Whether a number belongs to one of its listens. */
  readonly owns: (number: number) => boolean
  /** Records that the server has acknowledged a listen. `honoured` is the filter that the server accepted. */
  readonly acknowledged: (number: number, honoured: unknown) => void
  /** Records that the server reported a change on a listen. Returns whether the client should hear of it. */
  readonly hears: (number: number, change: string) => boolean
  /** Records that the server ended or refused a listen. `again` says whether to try again later. */
  readonly ended: (number: number, why: string, again: boolean) => void
}

interface Listen {
  readonly number: number
  readonly uris: ReadonlyArray<string>
  /** How often each change was reported on this listen, while there is a second one. */
  readonly told: Map<string, number>
}

/** Most resources that one session may subscribe to. */
const maxUris = 1000
/** How long an old listen stays open after the new one began, in milliseconds. It may still bring changes that were in flight. */
const linger = 500
/** The wait before a lost listen is reopened, in milliseconds. It doubles with each failure, up to `longestPause`. */
const shortestPause = 500
const longestPause = 30_000

/**
 * One function of more than sixty lines, because it is one state machine: each message of the server changes the same three
 * listens.
 */
export const make = ({ after, cancel, open, tell }: Connection): Subscriptions => {
  const uris = new Set<string>()
  const waiting = new Map<string, Array<(refused: string | undefined) => void>>()
  let lists: Filter = {}
  /** The active listen, the one that will replace it, and the one that it has replaced. */
  let current: Listen | undefined
  let next: Listen | undefined
  let old: Listen | undefined
  /** Whether the subscriptions have changed since `next` was opened. */
  let changed = false
  /** Whether a listen was lost, and perhaps changes with it. */
  let lost = false
  let failures = 0

  const refresh = () => {
    if (next !== undefined) {
      changed = true
      return
    }
    changed = false
    if (uris.size === 0 && Object.keys(lists).length === 0) {
      if (current !== undefined) cancel(current.number)
      current = undefined
      return
    }
    const wanted = [...uris]
    const filter = { ...lists, ...(wanted.length > 0 ? { resourceSubscriptions: wanted } : {}) }
    next = { number: open(filter), uris: wanted, told: new Map() }
  }

  const retire = () => {
    if (old !== undefined) cancel(old.number)
    old = undefined
  }

  const settle = (uri: string, refused: string | undefined) => {
    const waiters = waiting.get(uri) ?? []
    waiting.delete(uri)
    if (refused !== undefined) uris.delete(uri)
    for (const done of waiters) done(refused)
  }

  const retry = () => {
    const pause = Math.min(longestPause, shortestPause * 2 ** failures++)
    after(pause, () => current === undefined && refresh())
  }

  /** Notifies the client of everything that may have changed while there was no listen. */
  const tellAll = (listen: Listen) => {
    if (lists.toolsListChanged === true) tell("notifications/tools/list_changed", {})
    if (lists.promptsListChanged === true) tell("notifications/prompts/list_changed", {})
    if (lists.resourcesListChanged === true) tell("notifications/resources/list_changed", {})
    for (const uri of listen.uris) tell("notifications/resources/updated", { uri })
  }

  return {
    start: (wanted) => {
      lists = wanted
      if (Object.keys(lists).length > 0) refresh()
    },
    add: (uri, done) => {
      const waiters = waiting.get(uri)
      if (waiters !== undefined) return void waiters.push(done)
      if (uris.has(uri)) return done(undefined)
      if (uris.size >= maxUris) return done(`a session may subscribe to at most ${maxUris} resources`)
      uris.add(uri)
      waiting.set(uri, [done])
      refresh()
    },
    remove: (uri) => {
      settle(uri, "the client unsubscribed in the meantime")
      if (current?.uris.includes(uri) === true || next?.uris.includes(uri) === true) refresh()
    },
    owns: (number) => [current, next, old].some((listen) => listen?.number === number),
    acknowledged: (number, honoured) => {
      if (next?.number !== number) return
      retire()
      const begun = next
      next = undefined
      if (current !== undefined) {
        const retiring = old = { ...current, told: new Map() }
        after(linger, () => old === retiring && retire())
      }
      current = begun
      failures = 0
      const given = Predicate.hasProperty(honoured, "resourceSubscriptions")
        ? honoured.resourceSubscriptions
        : undefined
      for (const uri of begun.uris) {
        settle(uri, Array.isArray(given) && given.includes(uri) ? undefined : "the server does not report its changes")
      }
      if (lost) tellAll(begun)
      lost = false
      if (changed) refresh()
    },
    hears: (number, change) => {
      const [listen, other] = number === old?.number ? [old, current] : [current, old]
      if (listen?.number !== number) return false
      if (other === undefined) return true
      const count = (listen.told.get(change) ?? 0) + 1
      listen.told.set(change, count)
      return count > (other.told.get(change) ?? 0)
    },
    ended: (number, why, again) => {
      if (number === old?.number) old = undefined
      else if (number === current?.number) {
        current = undefined
        lost = true
        if (next === undefined) retry()
      } else if (number === next?.number) {
        const refused = next.uris.filter((uri) => waiting.has(uri))
        next = undefined
        for (const uri of refused) settle(uri, why)
        if (changed || (refused.length > 0 && current === undefined && uris.size > 0)) refresh()
        else if (current === undefined && again) retry()
      }
    }
  }
}
