/** The streams of GET of one session: for the messages of its process that belong to no request. */
import type { EventStream, EventStreams } from "./EventStreams.ts"

export class StandaloneStreams {
  readonly #streams: EventStreams
  /** The newest last. */
  #open: Array<EventStream> = []

  constructor(streams: EventStreams) {
    this.#streams = streams
  }

  /** Whether a client listens. */
  isRead(): boolean {
    return this.#open.some(({ reader }) => reader !== undefined)
  }

  /** Where a message goes: the newest stream with a reader, else the newest. */
  toWrite(): EventStream {
    return this.#open.findLast(({ reader }) => reader !== undefined) ?? this.#open.at(-1) ?? this.#add()
  }

  /** What a client that begins to listen gets: what nobody reads, else a new one. */
  toRead(): EventStream {
    return this.#open.findLast(({ reader }) => reader === undefined) ?? this.#add()
  }

  #add(): EventStream {
    const stream = this.#streams.open()
    // Of those that nobody reads, one with unread messages is enough to come back to.
    const isSpent = ({ delivered, reader, sequence }: EventStream) => reader === undefined && sequence === delivered
    const spent = this.#open.filter(isSpent)
    this.#open = [...this.#open.filter((other) => !isSpent(other)), stream]
    for (const other of spent) this.#streams.end(other)
    return stream
  }
}
