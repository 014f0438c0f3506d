/** The GET streams of one session, for messages of the process that belong to no request. */
import type { EventStream, EventStreams } from "./EventStreams.ts"

export class StandaloneStreams {
  readonly #streams: EventStreams
  /** The open streams, the newest last. */
  #open: Array<EventStream> = []

  constructor(streams: EventStreams) {
    this.#streams = streams
  }

  /** True if a client reads one of the streams. */
  isRead(): boolean {
    return this.#open.some(({ reader }) => reader !== undefined)
  }

  /** The stream for a new message: the newest with a reader, else the newest. */
  toWrite(): EventStream {
    return this.#open.findLast(({ reader }) => reader !== undefined) ?? this.#open.at(-1) ?? this.#add()
  }

  /** The stream for a new reader: the newest without a reader, else a new stream. */
  toRead(): EventStream {
    return this.#open.findLast(({ reader }) => reader === undefined) ?? this.#add()
  }

  #add(): EventStream {
    const stream = this.#streams.open()
    // A stream without a reader and without unread messages ends, because a client has nothing to resume there.
    const isSpent = ({ delivered, reader, sequence }: EventStream) => reader === undefined && sequence === delivered
    const spent = this.#open.filter(isSpent)
    this.#open = [...this.#open.filter((other) => !isSpent(other)), stream]
    for (const other of spent) this.#streams.end(other)
    return stream
  }
}
