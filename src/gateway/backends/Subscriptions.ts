/**
 * What a legacy session wants to hear of, kept in one `subscriptions/listen` of a modern server (basic/patterns/subscriptions).
 *
 * A listen cannot be changed, so another takes its place: the new one is acknowledged before the old one is given up, and
 * what both tell of in between is told once.
 */
import { Predicate } from "effect"

/** What a listen asks for, in the words of the specification. */
export interface Filter {
  readonly toolsListChanged?: boolean
  readonly promptsListChanged?: boolean
  readonly resourcesListChanged?: boolean
  readonly resourceSubscriptions?: ReadonlyArray<string>
}

/** What is done for it, by whoever holds the connection. */
export interface Connection {
  /** Sends a listen; its number. */
  readonly open: (filter: Filter) => number
  /** Gives a listen up. */
  readonly cancel: (number: number) => void
  /** Tells the client of a change. */
  readonly tell: (method: string, params: object) => void
  readonly after: (millis: number, what: () => void) => void
}

export interface Subscriptions {
  /** Hears of the changes of these lists from now on. */
  readonly start: (lists: Filter) => void
  /** Hears of changes of a resource; `done` gets why it cannot be, or nothing. */
  readonly add: (uri: string, done: (refused: string | undefined) => void) => void
  readonly remove: (uri: string) => void
  /** Whether a number is that of a listen of it. */
  readonly owns: (number: number) => boolean
  /** The server has begun with a listen; what it tells of. */
  readonly acknowledged: (number: number, honoured: unknown) => void
  /** The server has told of a change, on a listen; whether the client is to be told. */
  readonly hears: (number: number, change: string) => boolean
  /** The server has ended a listen, or refused it; whether it may be asked for it again. */
  readonly ended: (number: number, why: string, again: boolean) => void
}

interface Listen {
  readonly number: number
  readonly uris: ReadonlyArray<string>
  /** Changes told of, while there are two. */
  readonly told: Map<string, number>
}

/** Resources that one session may hear of. */
const maxUris = 1000
/** How long an old listen is kept after the new one has begun, for what is under way, in milliseconds. */
const linger = 500
/** How long to wait before a lost listen is opened anew, in milliseconds; doubled with each failure. */
const shortestPause = 500
const longestPause = 30_000

/**
 * One function of more than sixty lines, because it is one machine: each message of the server moves the same three listens, and
 * what they may do next is understood only beside what the others do.
 */
export const make = ({ after, cancel, open, tell }: Connection): Subscriptions => {
  const uris = new Set<string>()
  const waiting = new Map<string, Array<(refused: string | undefined) => void>>()
  let lists: Filter = {}
  /** The one that counts, the one that is to take its place, and the one whose place it has taken. */
  let current: Listen | undefined
  let next: Listen | undefined
  let old: Listen | undefined
  /** What is wanted has changed since `next` was opened. */
  let changed = false
  /** A listen has been lost, and with it perhaps news. */
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

  /** What may have been missed. */
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
      if (uris.size >= maxUris) return done(`a session may hear of ${maxUris} resources`)
      uris.add(uri)
      waiting.set(uri, [done])
      refresh()
    },
    remove: (uri) => {
      settle(uri, "it was unsubscribed again")
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
        settle(uri, Array.isArray(given) && given.includes(uri) ? undefined : "the server does not tell of its changes")
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
