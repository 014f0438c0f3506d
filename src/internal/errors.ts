/** The typed failures of the pool. Messages leave the key out, because keys are often secrets; the field has it. */
import { Schema } from "effect"

/** The lookup did not finish within `lookupTimeout`; whatever it still acquires is closed. */
export class LookupTimeout extends Schema.TaggedError<LookupTimeout>()("LookupTimeout", {
  key: Schema.Unknown,
  /** `lookupTimeout` in milliseconds. */
  limit: Schema.Number,
  /** Milliseconds that the lookup ran. */
  waited: Schema.Number
}) {
  override get message(): string {
    return `The lookup did not open the session within ${this.limit} ms (it ran ${this.waited} ms). ` +
      `Look for what it waits for, or raise lookupTimeout.`
  }
}

/** No place became free within `acquireTimeout`, or `maxWaiting` callers wait already. */
export class CapacityExceeded extends Schema.TaggedError<CapacityExceeded>()("CapacityExceeded", {
  key: Schema.Unknown,
  /** Which limit: of the pool, or of the key's group. */
  scope: Schema.Literals(["pool", "group"]),
  /** `capacity` or `groupCapacity`. */
  limit: Schema.Number,
  /** Milliseconds that the caller waited. */
  waited: Schema.Number,
  /** Callers that waited when this one was refused. */
  waiting: Schema.Number
}) {
  override get message(): string {
    const limit = this.scope === "pool" ? "capacity" : "groupCapacity"
    return `All ${this.limit} places are taken (${limit}) and no idle session could be evicted; ` +
      `waited ${this.waited} ms, ${this.waiting} waiting. Retry later, or raise ${limit}, acquireTimeout or maxWaiting.`
  }
}

/** The pool's scope has closed, or is closing. */
export class PoolClosed extends Schema.TaggedError<PoolClosed>()("PoolClosed", {
  key: Schema.Unknown
}) {
  override get message(): string {
    return "The session pool is closed: its scope has ended. Use it only while the layer or scope that made it is open."
  }
}

/** `validate` said no to the session, and again to the one launched in its place. */
export class ValidationFailed extends Schema.TaggedError<ValidationFailed>()("ValidationFailed", {
  key: Schema.Unknown,
  /** Sessions found invalid by this one call. */
  attempts: Schema.Number
}) {
  override get message(): string {
    return `validate refused ${this.attempts} sessions in a row, the last one just launched. ` +
      `The back end is broken, or validate is wrong.`
  }
}

/** Every way in which acquiring a session can fail, besides the lookup's own error. */
export type AcquireError = LookupTimeout | CapacityExceeded | PoolClosed | ValidationFailed

/** An option has a value that makes no sense: a programmer's error, thrown as a defect by `make`. */
export class InvalidOptions extends Schema.TaggedError<InvalidOptions>()("InvalidOptions", {
  option: Schema.String,
  value: Schema.String,
  allowed: Schema.String
}) {
  override get message(): string {
    return `SessionPool: the option ${this.option} is ${this.value}; it must be ${this.allowed}.`
  }
}
