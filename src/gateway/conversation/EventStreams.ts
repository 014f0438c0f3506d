/**
 * The event streams of one session. Each message is on exactly one stream and is kept for a while, so that a client
 * whose connection broke can resume (Streamable HTTP, "Resumability and Redelivery").
 *
 * An event that an open reader has yet to take is never dropped. Instead, `congested` makes the reader of the back end
 * wait. Other events are dropped, the oldest first, to make room for newer ones.
 */
import { Array as Arr, Cause, Effect } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"

export interface StreamEvent {
  readonly id: string
  readonly text: string
}

/** Limits of the events that are kept for clients that resume. */
export interface ReplayLimits {
  readonly maxEvents: number
  readonly maxBytes: number
}

/** A reader of a stream. A newer reader of the same stream ends it. */
export interface Reader {
  /** The id of the point before the reader's first event. A client that has received nothing yet can resume from it. */
  readonly start: string
  /** Takes the next events, and waits if there are none. Fails with `Done` when the stream has ended. */
  readonly take: Effect.Effect<NonEmptyReadonlyArray<StreamEvent>, Cause.Done>
  /** True if `take` would not wait. */
  readonly ready: () => boolean
  /** True if `take` would fail with `Done`: the reader has taken the whole stream, or a newer one reads it. */
  readonly isDone: () => boolean
  /** Stops reading. Later events wait for the next reader. */
  readonly close: () => void
}

interface Kept {
  readonly stream: EventStream
  readonly sequence: number
  readonly text: string
  /** Characters of this stream up to and including this event. */
  readonly offset: number
}

export class EventStream {
  readonly id: number
  events: Array<Kept> = []
  /** The number of the newest event. */
  sequence = 0
  offset = 0
  /** The number of the newest event that a reader took. */
  delivered = 0
  deliveredOffset = 0
  /** True if no further events come. */
  ended = false
  reader: Reader | undefined = undefined
  wake: (() => void) | undefined = undefined
  constructor(id: number) {
    this.id = id
  }
}

/** A take stops after this many characters, so that a slow connection holds few events. */
const batch = 64 * 1024

export class EventStreams {
  readonly #limits: ReplayLimits
  readonly #prefix: string
  readonly #streams = new Map<number, EventStream>()
  /** The streams that have a reader. */
  readonly #read = new Set<EventStream>()
  readonly #kept: Array<Kept> = []
  #bytes = 0
  #lastId = 0
  readonly #waitingForRoom = new Set<() => void>()

  /** `prefix` distinguishes the event ids of this process from those of the session's earlier processes. */
  constructor(limits: ReplayLimits, prefix: string) {
    this.#limits = limits
    this.#prefix = prefix
  }

  open(): EventStream {
    const stream = new EventStream(++this.#lastId)
    this.#streams.set(stream.id, stream)
    return stream
  }

  /** How many readers there are. */
  readers(): number {
    return this.#read.size
  }

  push(stream: EventStream, text: string): void {
    stream.offset += text.length
    const event = { stream, sequence: ++stream.sequence, text, offset: stream.offset }
    stream.events.push(event)
    this.#kept.push(event)
    this.#bytes += text.length
    this.#trim()
    stream.wake?.()
  }

  /** Ends a stream: no further events come. */
  end(stream: EventStream): void {
    stream.ended = true
    this.#forgetIfSpent(stream)
    stream.wake?.()
  }

  endAll(): void {
    for (const stream of this.#streams.values()) this.end(stream)
  }

  /**
   * The stream and the event number that a `Last-Event-ID` names. Undefined for an id of an earlier process. A stream
   * that is no longer kept is returned as ended and empty.
   */
  find(eventId: string): { readonly stream: EventStream; readonly sequence: number } | undefined {
    const [, prefix, id, sequence] = /^(\w+)-(\d+)-(\d+)$/.exec(eventId) ?? []
    if (prefix !== this.#prefix || Number(id) > this.#lastId) return undefined
    const stream = this.#streams.get(Number(id))
    if (stream === undefined) return { stream: endedStream(Number(id)), sequence: 0 }
    const at = Number(sequence)
    return at > stream.sequence ? undefined : { stream, sequence: at }
  }

  /** Reads a stream from the event after `sequence`. By default from the first event that no reader took. */
  read(stream: EventStream, sequence: number = stream.delivered): Reader {
    const wakeEarlier = stream.wake
    const [first] = stream.events
    // Dropped events are lost. The reader starts at the oldest event that is kept.
    stream.delivered = first === undefined ? stream.sequence : Math.max(sequence, first.sequence - 1)
    stream.deliveredOffset = stream.offset - size(stream.events.filter((event) => event.sequence > stream.delivered))
    const isCurrent = () => stream.reader === reader
    const ready = () => !isCurrent() || stream.ended || stream.sequence > stream.delivered
    const isDone = () => !isCurrent() || (stream.ended && stream.sequence === stream.delivered)
    const wait = Effect.callback<void>((resume) => {
      if (ready()) return resume(Effect.void)
      stream.wake = () => {
        stream.wake = undefined
        // Waits one microtask, so that the reader takes a burst of the back end at once.
        queueMicrotask(() => resume(Effect.void))
      }
      return Effect.sync(() => {
        if (isCurrent()) stream.wake = undefined
      })
    })
    const take = Effect.suspend(() => {
      const events = isCurrent() ? this.#take(stream) : []
      return Arr.isReadonlyArrayNonEmpty(events) ? Effect.succeed(events) : Cause.done()
    })
    const reader: Reader = {
      start: this.#eventId(stream, sequence),
      ready,
      isDone,
      take: Effect.suspend(() => ready() ? take : Effect.andThen(wait, take)),
      close: () => {
        if (!isCurrent()) return
        stream.reader = undefined
        stream.wake = undefined
        this.#read.delete(stream)
        this.#forgetIfSpent(stream)
        this.#announceRoom()
      }
    }
    stream.reader = reader
    this.#read.add(stream)
    stream.wake = undefined
    wakeEarlier?.()
    return reader
  }

  /** True if readers are so far behind that the back end should wait. */
  congested(): boolean {
    let events = 0
    let bytes = 0
    for (const stream of this.#read) {
      events += stream.sequence - stream.delivered
      bytes += stream.offset - stream.deliveredOffset
    }
    return events > this.#limits.maxEvents / 2 || bytes > this.#limits.maxBytes / 2
  }

  /** Waits until readers have caught up or closed. */
  readonly room: Effect.Effect<void> = Effect.callback((resume) => {
    if (!this.congested()) return resume(Effect.void)
    const waiter = () => resume(Effect.void)
    this.#waitingForRoom.add(waiter)
    return Effect.sync(() => this.#waitingForRoom.delete(waiter))
  })

  #eventId(stream: EventStream, sequence: number): string {
    return `${this.#prefix}-${stream.id}-${sequence}`
  }

  #take(stream: EventStream): Array<StreamEvent> {
    const taken: Array<StreamEvent> = []
    let bytes = 0
    // The events of a stream have consecutive numbers.
    const skip = stream.delivered + 1 - (stream.events[0]?.sequence ?? 0)
    for (const event of stream.events.slice(skip)) {
      taken.push({ id: this.#eventId(stream, event.sequence), text: event.text })
      stream.delivered = event.sequence
      stream.deliveredOffset = event.offset
      bytes += event.text.length
      if (bytes > batch) break
    }
    this.#trim()
    this.#announceRoom()
    return taken
  }

  #trim(): void {
    const { maxBytes, maxEvents } = this.#limits
    const kept = this.#kept
    // Events that a reader has yet to take stay, but later ones may be dropped. The newest event always stays.
    let at = 0
    while (at < kept.length - 1 && (kept.length > maxEvents || this.#bytes > maxBytes)) {
      const oldest = kept[at]
      if (oldest === undefined) return
      const { stream } = oldest
      if (stream.reader !== undefined && oldest.sequence > stream.delivered) {
        at++
        continue
      }
      kept.splice(at, 1)
      this.#bytes -= oldest.text.length
      // This is the first event of its stream: all older ones were dropped before.
      stream.events.shift()
      this.#forgetIfSpent(stream)
    }
  }

  /** Forgets an ended stream that has no reader and no events. */
  #forgetIfSpent(stream: EventStream): void {
    if (stream.ended && stream.reader === undefined && stream.events.length === 0) this.#streams.delete(stream.id)
  }

  #announceRoom(): void {
    // Copies the set: a waiter that is called may fill the room at once, and add itself again.
    const waiters = [...this.#waitingForRoom]
    for (const waiter of waiters) {
      if (this.congested()) return
      this.#waitingForRoom.delete(waiter)
      waiter()
    }
  }
}

const endedStream = (id: number): EventStream => {
  const stream = new EventStream(id)
  stream.ended = true
  return stream
}

const size = (events: ReadonlyArray<{ readonly text: string }>): number =>
  events.reduce((sum, event) => sum + event.text.length, 0)
