/**
 * The event streams of one session: each message on exactly one of them, and kept for a while, so that a client whose
 * connection broke resumes where it was (Streamable HTTP, "Resumability and Redelivery").
 *
 * A message that waits for a reader who is there is never dropped: `congested` tells the back end's reader to wait
 * instead. What nobody reads makes room for what is newer.
 */
import { Array as Arr, Cause, Effect } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"

export interface StreamEvent {
  readonly id: string
  readonly text: string
}

/** How much is kept for readers who come back. */
export interface ReplayLimits {
  readonly maxEvents: number
  readonly maxBytes: number
}

/** One reader of a stream; a newer reader of the same stream ends it. */
export interface Reader {
  /** The id of the point before the first event: what a client that got nothing yet can resume from. */
  readonly start: string
  /** The next events, at once or when there are some; done when the stream has ended. */
  readonly take: Effect.Effect<NonEmptyReadonlyArray<StreamEvent>, Cause.Done>
  /** Whether `take` would not wait. */
  readonly ready: () => boolean
  /** Whether `take` is done: the reader has taken the whole stream, or a newer one reads it. */
  readonly isDone: () => boolean
  /** Lets the stream go; what comes from now on waits for the next reader. */
  readonly close: () => void
}

interface Kept {
  readonly stream: EventStream
  readonly sequence: number
  readonly text: string
  /** Characters sent on this stream up to and including this event. */
  readonly offset: number
}

export class EventStream {
  readonly id: number
  events: Array<Kept> = []
  /** Of the newest event. */
  sequence = 0
  offset = 0
  /** Of the newest event that a reader took. */
  delivered = 0
  deliveredOffset = 0
  /** No further events come. */
  ended = false
  reader: Reader | undefined = undefined
  wake: (() => void) | undefined = undefined
  constructor(id: number) {
    this.id = id
  }
}

/** Characters that a reader takes at a time, so that a slow connection holds little. */
const batch = 64 * 1024

export class EventStreams {
  readonly #limits: ReplayLimits
  readonly #prefix: string
  readonly #streams = new Map<number, EventStream>()
  /** Those that have a reader. */
  readonly #read = new Set<EventStream>()
  readonly #kept: Array<Kept> = []
  #bytes = 0
  #lastId = 0
  readonly #waitingForRoom = new Set<() => void>()

  /** `prefix` tells the ids of this session's process from those of its earlier ones. */
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

  /** No further events come on this stream. */
  end(stream: EventStream): void {
    stream.ended = true
    this.#forgetIfSpent(stream)
    stream.wake?.()
  }

  endAll(): void {
    for (const stream of this.#streams.values()) this.end(stream)
  }

  /** The stream and the place that a `Last-Event-ID` of this process names. A stream that is no longer kept is returned as ended and empty. */
  find(eventId: string): { readonly stream: EventStream; readonly sequence: number } | undefined {
    const [, prefix, id, sequence] = /^(\w+)-(\d+)-(\d+)$/.exec(eventId) ?? []
    if (prefix !== this.#prefix || Number(id) > this.#lastId) return undefined
    const stream = this.#streams.get(Number(id))
    if (stream === undefined) return { stream: endedStream(Number(id)), sequence: 0 }
    const at = Number(sequence)
    return at > stream.sequence ? undefined : { stream, sequence: at }
  }

  /** Reads a stream from the event after `sequence`; by default from the first that nobody took. */
  read(stream: EventStream, sequence: number = stream.delivered): Reader {
    const wakeEarlier = stream.wake
    const [first] = stream.events
    // What has been dropped in the meantime is lost; the reader goes on with what there is.
    stream.delivered = first === undefined ? stream.sequence : Math.max(sequence, first.sequence - 1)
    stream.deliveredOffset = stream.offset - size(stream.events.filter((event) => event.sequence > stream.delivered))
    const isCurrent = () => stream.reader === reader
    const ready = () => !isCurrent() || stream.ended || stream.sequence > stream.delivered
    const isDone = () => !isCurrent() || (stream.ended && stream.sequence === stream.delivered)
    const wait = Effect.callback<void>((resume) => {
      if (ready()) return resume(Effect.void)
      stream.wake = () => {
        stream.wake = undefined
        // What a back end sends at once is pushed at once, and then taken together.
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

  /** Whether readers are so far behind that the back end should wait. */
  congested(): boolean {
    let events = 0
    let bytes = 0
    for (const stream of this.#read) {
      events += stream.sequence - stream.delivered
      bytes += stream.offset - stream.deliveredOffset
    }
    return events > this.#limits.maxEvents / 2 || bytes > this.#limits.maxBytes / 2
  }

  /** Waits until readers have caught up, or gone. */
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
    // The events of a stream follow one another without gaps.
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
    // What a reader is still to take stays, but what is behind it goes all the same; the newest is never dropped.
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
      // All older ones of its stream have gone before.
      stream.events.shift()
      this.#forgetIfSpent(stream)
    }
  }

  /** Forgets an ended stream of which nothing is kept any more. */
  #forgetIfSpent(stream: EventStream): void {
    if (stream.ended && stream.reader === undefined && stream.events.length === 0) this.#streams.delete(stream.id)
  }

  #announceRoom(): void {
    // A copy: a waiter that is called may fill the room at once, and wait again.
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
