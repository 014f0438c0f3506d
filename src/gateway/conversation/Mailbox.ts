/**
 * The mailboxes of one connection: events that wait for their readers. All mailboxes share one limit.
 *
 * Resumable mailboxes hold their events for a while after they were taken, so that a client whose connection broke can resume (Streamable
 * HTTP, "Resumability and Redelivery"). An event that an open reader has yet to take is never dropped. Instead, while `congested` is true,
 * the gateway reads nothing from the back end. Other events are dropped, the oldest first, to make room for newer ones.
 */
import { Cause, Deferred, Effect, Latch } from "effect"

/** How many events of all mailboxes are held at most, and how many characters. */
export interface Limits {
  readonly maxEvents: number
  readonly maxBytes: number
}

export interface Numbered<A> {
  /** The id of the event, for clients that resume. */
  readonly id: string
  readonly value: A
}

/** A reader of a mailbox. A newer reader of the same mailbox ends it. */
export interface Reader<A> {
  /** The id of the point before the reader's first event. A client that has received nothing yet can resume from it. */
  readonly start: string
  /** Takes the next events, at least one. Waits if there are none. Fails with `Done` when the mailbox has ended. */
  readonly take: Effect.Effect<ReadonlyArray<Numbered<A>>, Cause.Done>
  /** True if `take` would not wait. */
  readonly ready: () => boolean
  /** True if `take` would fail with `Done`: the reader has taken everything and no more comes, or a newer reader reads. */
  readonly isDone: () => boolean
  /** Stops reading. Later events wait for the next reader. */
  readonly close: () => void
}

interface Held<A> {
  readonly mailbox: Mailbox<A>
  readonly sequence: number
  readonly value: A
  readonly size: number
}

export class Mailbox<A> {
  readonly number: number
  /** The events that are held. Their numbers are consecutive, and the last is `sequence`. */
  events: Array<Held<A>> = []
  /** The number of the newest event. */
  sequence = 0
  /** The number of the newest event that is no longer unread: a reader took it, or it was dropped. */
  delivered = 0
  /** Characters of the unread events. */
  unread = 0
  /** True if no further events come. */
  ended = false
  reader: Reader<A> | undefined = undefined
  /** Completes when the waiting reader can continue. */
  news: Deferred.Deferred<void> | undefined = undefined
  constructor(number: number) {
    this.number = number
  }
}

/** A take stops after this many characters, so that a slow connection holds few events. */
const batch = 64 * 1024

/** Waits one microtask, so that a reader takes a burst of the back end at once. */
const arrived = Effect.callback<void>((resume) => queueMicrotask(() => resume(Effect.void)))

export class Mailboxes<A> {
  readonly #limits: Limits
  readonly #prefix: string | undefined
  readonly #mailboxes = new Map<number, Mailbox<A>>()
  /** The mailboxes that have a reader. */
  readonly #read = new Set<Mailbox<A>>()
  /** The events of all mailboxes, the oldest first. */
  readonly #held = new Set<Held<A>>()
  #bytes = 0
  #lastNumber = 0
  /** Closed while fibers wait for room. */
  readonly #mayHaveRoom = Latch.makeUnsafe()

  /**
   * The event ids of resumable mailboxes begin with `prefix`, which differs between the processes of a session. Without a prefix, events are
   * dropped when they are taken.
   */
  constructor(limits: Limits, prefix?: string) {
    this.#limits = limits
    this.#prefix = prefix
  }

  open(): Mailbox<A> {
    const mailbox = new Mailbox<A>(++this.#lastNumber)
    this.#mailboxes.set(mailbox.number, mailbox)
    return mailbox
  }

  /** How many readers there are. */
  readers(): number {
    return this.#read.size
  }

  /** Adds an event of `size` characters. */
  push(mailbox: Mailbox<A>, value: A, size: number): void {
    const event = { mailbox, sequence: ++mailbox.sequence, value, size }
    mailbox.events.push(event)
    mailbox.unread += size
    this.#held.add(event)
    this.#bytes += size
    this.#trim()
    wake(mailbox)
  }

  /** Ends a mailbox: no further events come. */
  end(mailbox: Mailbox<A>): void {
    mailbox.ended = true
    this.#forgetIfSpent(mailbox)
    wake(mailbox)
  }

  endAll(): void {
    for (const mailbox of this.#mailboxes.values()) this.end(mailbox)
  }

  /** Drops all events of a mailbox. */
  discard(mailbox: Mailbox<A>): void {
    while (mailbox.events.length > 0) this.#dropFirst(mailbox)
  }

  /**
   * The mailbox and the event number that an event's id names. Undefined for an id of an earlier process. A mailbox that is no longer
   * there is returned as ended and empty.
   */
  find(eventId: string): { readonly mailbox: Mailbox<A>; readonly sequence: number } | undefined {
    const [, prefix, id, sequence] = /^(\w+)-(\d+)-(\d+)$/.exec(eventId) ?? []
    const number = Number(id)
    if (prefix !== this.#prefix || number > this.#lastNumber) return undefined
    const mailbox = this.#mailboxes.get(number)
    if (mailbox === undefined) {
      const over = new Mailbox<A>(number)
      over.ended = true
      return { mailbox: over, sequence: 0 }
    }
    const at = Number(sequence)
    return at > mailbox.sequence ? undefined : { mailbox, sequence: at }
  }

  /** Reads a mailbox from the event after `sequence`. By default from the first event that no reader took. */
  read(mailbox: Mailbox<A>, sequence: number = mailbox.delivered): Reader<A> {
    // Dropped events are lost. The reader starts at the oldest event that is held.
    mailbox.delivered = Math.max(sequence, mailbox.sequence - mailbox.events.length)
    mailbox.unread = this.#unreadOf(mailbox).reduce((sum, { size }) => sum + size, 0)
    const isCurrent = () => mailbox.reader === reader
    const isDone = () => !isCurrent() || (mailbox.ended && mailbox.sequence === mailbox.delivered)
    const ready = () => isDone() || mailbox.sequence > mailbox.delivered
    const take: Reader<A>["take"] = Effect.suspend(() => {
      if (isDone()) return Cause.done()
      if (ready()) return Effect.succeed(this.#take(mailbox))
      const news = mailbox.news = Deferred.makeUnsafe<void>()
      return Effect.andThen(Effect.andThen(Deferred.await(news), arrived), take)
    })
    const reader: Reader<A> = {
      start: this.#eventId(mailbox, sequence),
      take,
      ready,
      isDone,
      close: () => {
        if (!isCurrent()) return
        mailbox.reader = undefined
        this.#read.delete(mailbox)
        this.#forgetIfSpent(mailbox)
        this.announceRoom()
      }
    }
    mailbox.reader = reader
    this.#read.add(mailbox)
    // Ends the earlier reader.
    wake(mailbox)
    return reader
  }

  /** True if readers are so far behind that the back end should wait. */
  congested(): boolean {
    let events = 0
    let bytes = 0
    for (const { delivered, sequence, unread } of this.#read) {
      events += sequence - delivered
      bytes += unread
    }
    return events > this.#limits.maxEvents / 2 || bytes > this.#limits.maxBytes / 2
  }

  /** Waits until `isFull` is false. Asks again whenever readers have caught up or closed, and at `announceRoom`. */
  room(isFull: () => boolean = () => this.congested()): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (!isFull()) return Effect.void
      this.#mayHaveRoom.closeUnsafe()
      return Effect.andThen(this.#mayHaveRoom.await, this.room(isFull))
    })
  }

  announceRoom(): void {
    this.#mayHaveRoom.openUnsafe()
  }

  #eventId(mailbox: Mailbox<A>, sequence: number): string {
    return `${this.#prefix ?? ""}-${mailbox.number}-${sequence}`
  }

  /** The events that no reader took. */
  #unreadOf({ delivered, events, sequence }: Mailbox<A>): ReadonlyArray<Held<A>> {
    return events.slice(events.length - (sequence - delivered))
  }

  #take(mailbox: Mailbox<A>): Array<Numbered<A>> {
    const taken: Array<Numbered<A>> = []
    let bytes = 0
    for (const { sequence, size, value } of this.#unreadOf(mailbox)) {
      taken.push({ id: this.#eventId(mailbox, sequence), value })
      bytes += size
      if (bytes > batch) break
    }
    mailbox.delivered += taken.length
    mailbox.unread -= bytes
    if (this.#prefix === undefined) taken.forEach(() => this.#dropFirst(mailbox))
    this.#trim()
    this.announceRoom()
    return taken
  }

  /** Drops old events until the rest is within the limits. The newest event always stays. */
  #trim(): void {
    const { maxBytes, maxEvents } = this.#limits
    let left = this.#held.size
    for (const { mailbox, sequence } of this.#held) {
      if (--left === 0 || (this.#held.size <= maxEvents && this.#bytes <= maxBytes)) return
      // A reader has yet to take this event. Later ones may be dropped.
      if (mailbox.reader !== undefined && sequence > mailbox.delivered) continue
      // This is the first event of its mailbox: all older ones were dropped before.
      this.#dropFirst(mailbox)
    }
  }

  #dropFirst(mailbox: Mailbox<A>): void {
    const event = mailbox.events.shift()
    if (event === undefined) return
    if (event.sequence > mailbox.delivered) {
      mailbox.delivered = event.sequence
      mailbox.unread -= event.size
    }
    this.#held.delete(event)
    this.#bytes -= event.size
    this.#forgetIfSpent(mailbox)
  }

  /** Forgets an ended mailbox that has no reader and no events. */
  #forgetIfSpent(mailbox: Mailbox<A>): void {
    if (mailbox.ended && mailbox.reader === undefined && mailbox.events.length === 0) {
      this.#mailboxes.delete(mailbox.number)
    }
  }
}

/** Wakes the reader, if it waits. */
const wake = ({ news }: Mailbox<unknown>): void => {
  if (news !== undefined) Deferred.doneUnsafe(news, Effect.void)
}
