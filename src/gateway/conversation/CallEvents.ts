/** The events of a call for its client. They are queued until the client's HTTP request takes them. */
import { Effect } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"

/** An event of a call, as its client gets it. No event follows an answer. */
export type Event =
  | { readonly _tag: "Notification"; readonly text: string }
  /** The server waits for the client's answers to its questions. */
  | { readonly _tag: "InputRequired" }
  | Answer

/** How a call ends. */
export interface Answer {
  readonly _tag: "Answer"
  readonly text: string
  readonly status: number
}

/**
 * A queued event. The client's ids are added when it is taken, because a parked call continues under the id of another
 * request.
 */
export type Queued = { readonly _tag: "InputRequired" } | Raw | Ended

export interface Ended {
  readonly _tag: "Ended"
  readonly member: "result" | "error"
  readonly value: unknown
  readonly status: number
}

/** A notification of the server. `kind` decides whether the client gets it, and in which form. */
export interface Raw {
  readonly _tag: "Raw"
  readonly kind: "progress" | "log" | "subscription"
  readonly method: string
  readonly params: unknown
  /** Characters of the message. */
  readonly size: number
  /** The severity of a log message: its index in `Modern.logLevels`. */
  readonly level: number
}

/** The room for more events, which all calls of a lane share. */
export class Room {
  readonly #isFull: () => boolean
  readonly #waiting = new Set<() => void>()

  constructor(isFull: () => boolean) {
    this.#isFull = isFull
  }

  isFull(): boolean {
    return this.#isFull()
  }

  /** Waits until there is room. */
  readonly wait: Effect.Effect<void> = Effect.callback((resume) => {
    if (!this.#isFull()) return resume(Effect.void)
    const waiter = () => resume(Effect.void)
    this.#waiting.add(waiter)
    return Effect.sync(() => this.#waiting.delete(waiter))
  })

  /** Wakes the waiters if there is room. Call it when an event was taken or a call has ended. */
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

const sizeOf = (event: Queued): number => event._tag === "Raw" ? event.size : 0

export class CallEvents {
  readonly #limits: Limits
  /** Characters of the queued notifications. */
  #size = 0
  readonly #queue: Array<Queued> = []
  #parked = false
  #over = false
  #wake: (() => void) | undefined

  /** The queue is full above these limits. While the call is parked, its oldest notifications are dropped instead. */
  constructor(limits: Limits) {
    this.#limits = limits
  }

  /** True if no further event comes. */
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

  /** Parks the call: no HTTP request takes its events for now. */
  park(): void {
    this.#parked = true
    this.#makeRoom()
  }

  resume(): void {
    this.#parked = false
  }

  /** Takes the next events, up to the first that asks for input. Waits if there are none. */
  take(render: (event: Queued) => Event | undefined, room: Room): Effect.Effect<NonEmptyReadonlyArray<Event>> {
    // Only the fiber that goes on with the events removes them, so an interrupted wait loses none.
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

/** A queued event in the form for the client's current request. `undefined` if the client gets nothing. */
export const render = (call: Modern.Call, asked: number, event: Queued): Event | undefined => {
  switch (event._tag) {
    case "InputRequired":
      // The questions may have been answered or cancelled meanwhile.
      return asked === 0 ? undefined : event
    case "Ended": {
      const { text } = event.member === "result"
        ? JsonRpc.result(call.request.id, event.value)
        : JsonRpc.failure(call.request.id, event.value)
      return { _tag: "Answer", text, status: event.status }
    }
    case "Raw": {
      const params = forClient(call, event)
      if (params === undefined) return undefined
      return { _tag: "Notification", text: JsonRpc.notification(event.method, params).text }
    }
  }
}

const forClient = ({ logLevel, request }: Modern.Call, { kind, level, params }: Raw): unknown => {
  switch (kind) {
    case "progress":
      return request.progressToken === undefined
        ? undefined
        : { ...Json.objectOf(params), progressToken: request.progressToken }
    case "log":
      return logLevel !== undefined && level >= Modern.logLevels.indexOf(logLevel) ? params ?? {} : undefined
    case "subscription":
      return Modern.tagged(params, request.id)
  }
}
