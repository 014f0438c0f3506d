/**
 * The event streams of one session: those of its requests, and the standalone streams, for messages that belong to no request.
 *
 * A session whose client's standalone stream broke off ends if the client then sends nothing for `streamLostTimeToLive`.
 */
import { Duration } from "effect"
import { randomBytes } from "node:crypto"
import type { Background } from "./InFlight.ts"
import type * as Mailbox from "./Mailbox.ts"
import { Mailboxes } from "./Mailbox.ts"
import * as Overdue from "./Overdue.ts"

export type Stream = Mailbox.Mailbox<string>
type Reader = Mailbox.Reader<string>

export interface Limits {
  /** A session whose client's standalone stream broke off is ended if the client then sends nothing for this long. */
  readonly streamLostTimeToLive: Duration.Duration
  /** The most requests that may run at once, and the most streams that may be open. */
  readonly maxInFlight: number
  readonly replay: Mailbox.Limits
}

/** What the streams need to know of their session. */
export interface Session {
  /** True if a request is running, or the session has ended. */
  readonly isBusy: () => boolean
  /** Ends the session because its client is gone. */
  readonly endLost: (reason: string) => void
}

export class SessionStreams extends Mailboxes<string> {
  readonly #background: Background
  readonly #maxReaders: number
  /** The standalone streams, the newest last. */
  #standalone: Array<Stream> = []
  readonly #startLostTimer: () => void
  /** When the client was last connected. Undefined if no stream broke off, or if the client has sent something since. */
  #lostSince: number | undefined

  constructor(background: Background, { maxInFlight, replay, streamLostTimeToLive }: Limits, session: Session) {
    super(replay, randomBytes(4).toString("hex"))
    this.#background = background
    this.#maxReaders = maxInFlight
    const lostAfter = Duration.toMillis(streamLostTimeToLive)
    const reason = `the client's GET stream broke off, and the client sent nothing for ${
      Duration.format(streamLostTimeToLive)
    }`
    const look = () => {
      if (this.#lostSince === undefined) return false
      const isBusy = this.readers() > 0 || session.isBusy()
      if (!isBusy && background.now() - this.#lostSince >= lostAfter) session.endLost(reason)
      return true
    }
    this.#startLostTimer = Overdue.make(Overdue.interval(60_000, lostAfter), look, background.fork)
  }

  isStandaloneRead(): boolean {
    return this.#standalone.some(isRead)
  }

  override read(stream: Stream, sequence?: number): Reader {
    const reader = super.read(stream, sequence)
    return {
      ...reader,
      close: () => {
        reader.close()
        this.connectedUntilNow()
      }
    }
  }

  /** The standalone stream for a new message: the newest that is read, else the newest. */
  standalone(): Stream {
    return this.#standalone.findLast(isRead) ?? this.#standalone.at(-1) ?? this.#addStandalone()
  }

  /** Reads the rest of the stream that `from` names, or a standalone stream: the newest without a reader, else a new one. */
  listen(from: string | undefined): Reader | "TooMany" {
    if (this.readers() >= this.#maxReaders) return "TooMany"
    const place = from === undefined ? undefined : this.find(from)
    const stream = place?.mailbox ?? this.#standalone.findLast((stream) => !isRead(stream)) ?? this.#addStandalone()
    const reader = this.read(stream, place?.sequence)
    return {
      ...reader,
      close: () => {
        const isLost = !reader.isDone()
        reader.close()
        // A resumed request's stream may break after the standalone stream. The client was connected until now, so the time restarts.
        if (!isLost || this.isStandaloneRead()) return
        this.#lostSince = this.#background.now()
        this.#startLostTimer()
      }
    }
  }

  /** Restarts the time of a lost stream. A client that waited for an answer, or read a stream, was connected until now. */
  connectedUntilNow(): void {
    if (this.#lostSince !== undefined) this.#lostSince = this.#background.now()
  }

  /** Forgets a lost stream, because a client that sends messages without the stream does not need it. */
  heard(): void {
    this.#lostSince = undefined
  }

  #addStandalone(): Stream {
    const stream = this.open()
    // A stream without a reader and without unread messages ends, because a client has nothing to resume there.
    const isSpent = (other: Stream) => !isRead(other) && other.sequence === other.delivered
    const spent = this.#standalone.filter(isSpent)
    this.#standalone = [...this.#standalone.filter((other) => !isSpent(other)), stream]
    for (const other of spent) this.end(other)
    return stream
  }
}

const isRead = ({ reader }: Stream): boolean => reader !== undefined
