/**
 * The mailboxes of one connection: streams of events that wait for their readers. All mailboxes share one limit.
 *
 * A mailbox that `keeps` its events holds them for a while after they were taken, so that a client whose connection broke can resume
 * (Streamable HTTP, "Resumability and Redelivery"). An event that an open reader has yet to take is never dropped. Instead, `congested`
 * makes the reader of the back end wait. Other events are dropped, the oldest first, to make room for newer ones.
 */
import { Cause, Effect } from "effect"

/** The most events of all mailboxes that are held, and their characters. */
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
  /** Takes the next events. Waits if there are none. Returns none after a `nudge`. Fails with `Done` when the mailbox has ended. */
  readonly take: Effect.Effect<ReadonlyArray<Numbered<A>>, Cause.Done>
  /** True if `take` would not wait. */
  readonly ready: () => boolean
  /** True if `take` would fail with `Done`: the reader has taken everything, or a newer one reads. */
  readonly isDone: () => boolean
  /** Stops reading. Later events wait for the next reader. */
  readonly close: () => void
}

interface Held<A> {
  readonly mailbox: Mailbox<A>
  readonly sequence: number
  readonly value: A
  readonly size: number
  /** Characters of this mailbox up to and including this event. */
  readonly offset: number
}

export class Mailbox<A> {
  readonly number: number
  readonly keeps: boolean
  events: Array<Held<A>> = []
  /** The number of the newest event. */
  sequence = 0
  offset = 0
  /** The number of the newest event that a reader took. */
  delivered = 0
  deliveredOffset = 0
  /** True if no further events come. */
  ended = false
  nudged = false
  reader: Reader<A> | undefined = undefined
  wake: (() => void) | undefined = undefined
  constructor(number: number, keeps: boolean) {
    this.number = number
    this.keeps = keeps
  }
}

/** A take stops after this many characters, so that a slow connection holds few events. */
const batch = 64 * 1024

export class Mailboxes<A> {
  readonly #limits: Limits
  readonly #sizeOf: (value: A) => number
  readonly #prefix: string
  readonly #mailboxes = new Map<number, Mailbox<A>>()
  /** The mailboxes that have a reader. */
  readonly #read = new Set<Mailbox<A>>()
  readonly #held: Array<Held<A>> = []
  #bytes = 0
  #lastNumber = 0
  readonly #waitingForRoom = new Set<() => void>()

  /** `prefix` distinguishes the event ids of this process from those of the session's earlier processes. */
  constructor(limits: Limits, sizeOf: (value: A) => number, prefix: string) {
    this.#limits = limits
    this.#sizeOf = sizeOf
    this.#prefix = prefix
  }

  open(keeps: boolean): Mailbox<A> {
    const mailbox = new Mailbox<A>(++this.#lastNumber, keeps)
    this.#mailboxes.set(mailbox.number, mailbox)
    return mailbox
  }

  /** How many readers there are. */
  readers(): number {
    return this.#read.size
  }

  push(mailbox: Mailbox<A>, value: A): void {
    const size = this.#sizeOf(value)
    mailbox.offset += size
    const event = { mailbox, sequence: ++mailbox.sequence, value, size, offset: mailbox.offset }
    mailbox.events.push(event)
    this.#held.push(event)
    this.#bytes += size
    this.#trim()
    mailbox.wake?.()
  }

  /** Ends a mailbox: no further events come. */
  end(mailbox: Mailbox<A>): void {
    mailbox.ended = true
    this.#forgetIfSpent(mailbox)
    mailbox.wake?.()
  }

  endAll(): void {
    for (const mailbox of this.#mailboxes.values()) this.end(mailbox)
  }

  /** Drops all events of a mailbox. */
  discard(mailbox: Mailbox<A>): void {
    while (mailbox.events.length > 0) this.#dropFirst(mailbox)
  }

  /** Makes the reader's `take` return, even without an event. */
  nudge(mailbox: Mailbox<A>): void {
    mailbox.nudged = true
    mailbox.wake?.()
  }

  /**
   * The mailbox and the event number that an event's id names. Undefined for an id of an earlier process. A mailbox that is no longer
   * there is returned as ended and empty.
   */
  find(eventId: string): { readonly mailbox: Mailbox<A>; readonly sequence: number } | undefined {
    const [, prefix, id, sequence] = /^(\w+)-(\d+)-(\d+)$/.exec(eventId) ?? []
    if (prefix !== this.#prefix || Number(id) > this.#lastNumber) return undefined
    const mailbox = this.#mailboxes.get(Number(id))
    if (mailbox === undefined) {
      const over = new Mailbox<A>(Number(id), true)
      over.ended = true
      return { mailbox: over, sequence: 0 }
    }
    const at = Number(sequence)
    return at > mailbox.sequence ? undefined : { mailbox, sequence: at }
  }

  /** Reads a mailbox from the event after `sequence`. By default from the first event that no reader took. */
  read(mailbox: Mailbox<A>, sequence: number = mailbox.delivered): Reader<A> {
    const wakeEarlier = mailbox.wake
    const [first] = mailbox.events
    // Dropped events are lost. The reader starts at the oldest event that is held.
    mailbox.delivered = first === undefined ? mailbox.sequence : Math.max(sequence, first.sequence - 1)
    const unread = mailbox.events.filter((event) => event.sequence > mailbox.delivered)
    mailbox.deliveredOffset = mailbox.offset - unread.reduce((sum, { size }) => sum + size, 0)
    const isCurrent = () => mailbox.reader === reader
    const hasEvents = () => mailbox.sequence > mailbox.delivered
    const ready = () => !isCurrent() || mailbox.ended || mailbox.nudged || hasEvents()
    const wait = Effect.callback<void>((resume) => {
      if (ready()) return resume(Effect.void)
      const wake = () => {
        mailbox.wake = undefined
        // Waits one microtask, so that the reader takes a burst of the back end at once.
        queueMicrotask(() => resume(Effect.void))
      }
      mailbox.wake = wake
      return Effect.sync(() => {
        if (mailbox.wake === wake) mailbox.wake = undefined
      })
    })
    const take = Effect.suspend(() => {
      if (!isCurrent()) return Cause.done()
      if (!hasEvents() && mailbox.ended) return Cause.done()
      mailbox.nudged = false
      return Effect.succeed(this.#take(mailbox))
    })
    const reader: Reader<A> = {
      start: this.#eventId(mailbox, sequence),
      ready,
      isDone: () => !isCurrent() || (mailbox.ended && !hasEvents()),
      take: Effect.suspend(() => ready() ? take : Effect.andThen(wait, take)),
      close: () => {
        if (!isCurrent()) return
        mailbox.reader = undefined
        mailbox.wake = undefined
        this.#read.delete(mailbox)
        if (mailbox.ended && !mailbox.keeps) this.discard(mailbox)
        this.#forgetIfSpent(mailbox)
        this.announceRoom()
      }
    }
    mailbox.reader = reader
    this.#read.add(mailbox)
    mailbox.wake = undefined
    wakeEarlier?.()
    return reader
  }

  /** True if readers are so far behind that the back end should wait. */
  congested(): boolean {
    let events = 0
    let bytes = 0
    for (const mailbox of this.#read) {
      events += mailbox.sequence - mailbox.delivered
      bytes += mailbox.offset - mailbox.deliveredOffset
    }
    return events > this.#limits.maxEvents / 2 || bytes > this.#limits.maxBytes / 2
  }

  /** Waits until `isFull` is false. Asks again whenever readers have caught up or closed, and at `announceRoom`. */
  room(isFull: () => boolean = () => this.congested()): Effect.Effect<void> {
    return Effect.callback((resume) => {
      if (!isFull()) return resume(Effect.void)
      const waiter = () => {
        if (isFull()) return
        this.#waitingForRoom.delete(waiter)
        resume(Effect.void)
      }
      this.#waitingForRoom.add(waiter)
      return Effect.sync(() => this.#waitingForRoom.delete(waiter))
    })
  }

  announceRoom(): void {
    // Copies the set: a waiter that is called may fill the room at once, and add itself again.
    const waiters = [...this.#waitingForRoom]
    for (const waiter of waiters) waiter()
  }

  #eventId(mailbox: Mailbox<A>, sequence: number): string {
    return `${this.#prefix}-${mailbox.number}-${sequence}`
  }

  #take(mailbox: Mailbox<A>): Array<Numbered<A>> {
    const taken: Array<Numbered<A>> = []
    let bytes = 0
    // The events of a mailbox have consecutive numbers.
    const skip = mailbox.delivered + 1 - (mailbox.events[0]?.sequence ?? 0)
    for (const event of mailbox.events.slice(skip)) {
      taken.push({ id: this.#eventId(mailbox, event.sequence), value: event.value })
      mailbox.delivered = event.sequence
      mailbox.deliveredOffset = event.offset
      bytes += event.size
      if (bytes > batch) break
    }
    while (!mailbox.keeps && (mailbox.events[0]?.sequence ?? Infinity) <= mailbox.delivered) this.#dropFirst(mailbox)
    this.#trim()
    this.announceRoom()
    return taken
  }

  #trim(): void {
    const { maxBytes, maxEvents } = this.#limits
    const held = this.#held
    // Events that a reader has yet to take stay, but later ones may be dropped. The newest event always stays.
    let at = 0
    while (at < held.length - 1 && (held.length > maxEvents || this.#bytes > maxBytes)) {
      const oldest = held[at]
      if (oldest === undefined) return
      const { mailbox, sequence } = oldest
      if (mailbox.reader !== undefined && sequence > mailbox.delivered) at++
      // This is the first event of its mailbox: all older ones were dropped before.
      else this.#dropFirst(mailbox)
    }
  }

  #dropFirst(mailbox: Mailbox<A>): void {
    const event = mailbox.events.shift()
    if (event === undefined) return
    this.#held.splice(this.#held.indexOf(event), 1)
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
