/** Why a session could not be opened or found. */
import { Schema } from "effect"

/** The process could not be started, or ended before it answered. */
export class BackendFailed extends Schema.TaggedError<BackendFailed>()("BackendFailed", {
  reason: Schema.String,
  /** The beginning and the end of what it wrote on stderr. */
  stderr: Schema.String,
  /**
   * The gateway could not start it: no file handles, no memory, or no place in the start queue in time. Answered with 503; not
   * counted against the back end.
   */
  shortage: Schema.optionalKey(Schema.Boolean),
  /** Why the session ended, if not by a fault of the back end. Default: `backend failed`. */
  ended: Schema.optional(Schema.Literals(["process exited", "client gone"]))
}) {
  override get message(): string {
    return this.stderr === "" ? this.reason : `${this.reason}; its stderr: ${this.stderr}`
  }
}

/** The back end answered `initialize` with an error, which is the client's to read. */
export class InitializeRefused extends Schema.TaggedError<InitializeRefused>()("InitializeRefused", {
  answer: Schema.String
}) {}

/** There is no such session, or no longer. */
export class UnknownSession extends Schema.TaggedError<UnknownSession>()("UnknownSession", {}) {}

/** The back end has as many sessions as it may. */
export class BackendFull extends Schema.TaggedError<BackendFull>()("BackendFull", {
  backend: Schema.String,
  limit: Schema.Int
}) {
  override get message(): string {
    return `The back end "${this.backend}" has ${this.limit} sessions, its limit; try again later`
  }
}

/** All processes that one modern client may have are taken by its own calls. */
export class LanesTaken extends Schema.TaggedError<LanesTaken>()("LanesTaken", {
  backend: Schema.String,
  limit: Schema.Int
}) {
  override get message(): string {
    return `All ${this.limit} processes of this client on "${this.backend}" are taken by calls that run or wait for input; ` +
      "answer them, or try again later"
  }
}

/** A modern client has as many requests running as a session may. */
export class TooManyCalls extends Schema.TaggedError<TooManyCalls>()("TooManyCalls", {
  backend: Schema.String,
  limit: Schema.Int
}) {
  override get message(): string {
    return `${this.limit} requests of this client on "${this.backend}" are running, the limit; try again later`
  }
}

/** The back end failed to start several times in a row; it is left alone for a while. */
export class CoolingDown extends Schema.TaggedError<CoolingDown>()("CoolingDown", {
  backend: Schema.String,
  failures: Schema.Int,
  seconds: Schema.Int
}) {
  // Without the failure's text, which may hold what another client sent or may see.
  override get message(): string {
    return `The back end "${this.backend}" failed to start ${this.failures} times in a row and is tried again in ` +
      `${this.seconds} s`
  }
}

/** What is known of sleeping sessions cannot be read now. */
export class RecordsUnreachable extends Schema.TaggedError<RecordsUnreachable>()("RecordsUnreachable", {}) {
  override get message(): string {
    return "The database with the sleeping sessions does not answer; try again later"
  }
}

/** The session's id has moved to another replica while the request waited; the request was not carried out. */
export class SessionMoved extends Schema.TaggedError<SessionMoved>()("SessionMoved", {}) {
  override get message(): string {
    return "The session has moved to another replica; try again"
  }
}

export type LaunchError =
  | BackendFailed
  | InitializeRefused
  | UnknownSession
  | BackendFull
  | CoolingDown
  | RecordsUnreachable
  | SessionMoved
