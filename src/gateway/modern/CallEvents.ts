/** What a call's client is told, queued until its HTTP request takes it. */
import { Effect } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as JsonText from "../messages/JsonText.ts"
import * as Modern from "./Modern.ts"

/** What a call's client hears, in order. After an answer nothing follows. */
export type Event =
  | { readonly _tag: "Notification"; readonly text: string }
  /** The server waits for what the call asks of its client. */
  | { readonly _tag: "InputRequired" }
  | Answer

/** How a call ends. */
export interface Answer {
  readonly _tag: "Answer"
  readonly text: string
  readonly status: number
}

/** What waits to be taken. The client's ids are put in then: a parked call goes on under the id of another request. */
export type Queued = { readonly _tag: "InputRequired" } | Raw | Ended

export interface Ended {
  readonly _tag: "Ended"
  readonly member: "result" | "error"
  /** JSON of it. */
  readonly value: string
  readonly status: number
}

/** A notification of the server, by what makes it the client's. */
export interface Raw {
  readonly _tag: "Raw"
  readonly kind: "progress" | "log" | "subscription"
  readonly method: string
  /** JSON of its parameters. */
  readonly params: string
  /** Of a log message: how severe it is. */
  readonly level: number
}

/** Whether there is room for more, of all calls of a lane. */
export class Room {
  readonly #isFull: () => boolean
  readonly #waiting = new Set<() => void>()

  constructor(isFull: () => boolean) {
    this.#isFull = isFull
  }

  isFull(): boolean {
    return this.#isFull()
  }

  /** Waits until there is. */
  readonly wait: Effect.Effect<void> = Effect.callback((resume) => {
    if (!this.#isFull()) return resume(Effect.void)
    const waiter = () => resume(Effect.void)
    this.#waiting.add(waiter)
    return Effect.sync(() => this.#waiting.delete(waiter))
  })

  /** To be called when something was taken or has ended. */
  announce(): void {
    if (this.#waiting.size === 0 || this.#isFull()) return
    const waiting = [...this.#waiting]
    this.#waiting.clear()
    for (const waiter of waiting) waiter()
  }
}

export interface Limits {
  readonly maxEvents: number
  readonly maxBytes: number
}

const sizeOf = (event: Queued): number => event._tag === "Raw" ? event.params.length : 0

export class CallEvents {
  readonly #limits: Limits
  /** Characters of the notifications that wait. */
  #size = 0
  readonly #queue: Array<Queued> = []
  #parked = false
  #over = false
  #wake: (() => void) | undefined

  /** More than that make it full; while nobody reads them, the oldest notifications make room. */
  constructor(limits: Limits) {
    this.#limits = limits
  }

  /** No further event comes. */
  get over(): boolean {
    return this.#over
  }

  isFull(): boolean {
    return !this.#parked && this.#exceeds()
  }

  #exceeds(): boolean {
    return this.#queue.length > this.#limits.maxEvents || this.#size > this.#limits.maxBytes
  }

  push(event: Queued): void {
    if (this.#over) return
    this.#queue.push(event)
    this.#size += sizeOf(event)
    this.#over = event._tag === "Ended"
    if (this.#parked) this.#makeRoom()
    this.#wake?.()
  }

  #makeRoom(): void {
    while (this.#exceeds()) {
      const oldest = this.#queue.findIndex(({ _tag }) => _tag === "Raw")
      if (oldest < 0) return
      for (const dropped of this.#queue.splice(oldest, 1)) this.#size -= sizeOf(dropped)
    }
  }

  /** Nobody reads for now. */
  park(): void {
    this.#parked = true
    this.#makeRoom()
  }

  resume(): void {
    this.#parked = false
  }

  /** The next events, at once or when there are some; up to the first that asks for input. */
  take(render: (event: Queued) => Event | undefined, room: Room): Effect.Effect<NonEmptyReadonlyArray<Event>> {
    // Taken out only by the fiber that goes on with them: one that is interrupted while it waits has taken nothing.
    const taken = Effect.suspend((): Effect.Effect<NonEmptyReadonlyArray<Event>> => {
      const events: Array<Event> = []
      while (this.#queue.length > 0 && events.at(-1)?._tag !== "InputRequired") {
        const event = this.#queue.shift()
        if (event !== undefined) this.#size -= sizeOf(event)
        const rendered = event === undefined ? undefined : render(event)
        if (rendered !== undefined) events.push(rendered)
      }
      room.announce()
      const [first, ...others] = events
      return first === undefined ? this.take(render, room) : Effect.succeed([first, ...others])
    })
    return Effect.andThen(this.#ready, taken)
  }

  readonly #ready: Effect.Effect<void> = Effect.callback((resume) => {
    if (this.#queue.length > 0) return resume(Effect.void)
    const wake = () => {
      this.#wake = undefined
      resume(Effect.void)
    }
    this.#wake = wake
    return Effect.sync(() => {
      if (this.#wake === wake) this.#wake = undefined
    })
  })
}

/** What a queued event is for the request that the client waits on now; `undefined`: nothing. */
export const render = (call: Modern.Call, asked: number, event: Queued): Event | undefined => {
  switch (event._tag) {
    case "InputRequired":
      // What was asked may have been answered or taken back in the meantime.
      return asked === 0 ? undefined : event
    case "Ended": {
      const text = `{"jsonrpc":"2.0","id":${call.id},"${event.member}":${event.value}}`
      return { _tag: "Answer", text, status: event.status }
    }
    case "Raw": {
      const params = forClient(call, event)
      if (params === undefined) return undefined
      const text = `{"jsonrpc":"2.0","method":${JSON.stringify(event.method)},"params":${params}}`
      return { _tag: "Notification", text }
    }
  }
}

const forClient = ({ id, logLevel, progressToken }: Modern.Call, { kind, level, params }: Raw): string | undefined => {
  switch (kind) {
    case "progress":
      return progressToken === undefined ? undefined : JsonText.edit(params, { progressToken })
    case "log":
      return logLevel !== undefined && level >= Modern.logLevels.indexOf(logLevel) ? params : undefined
    case "subscription":
      return Modern.tagged(params, id)
  }
}
