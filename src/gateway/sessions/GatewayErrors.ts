/** The errors of opening or finding a session. */
import { Schema } from "effect"
import type { InitializeRefused } from "../conversation/PooledConnection.ts"
import type { BackendFailed } from "../transports/Transport.ts"

/** The session does not exist or has ended. */
export class UnknownSession extends Schema.TaggedError<UnknownSession>()("UnknownSession", {}) {}

/** The back end has reached `maxSessionsPerBackend`. */
export class BackendFull extends Schema.TaggedError<BackendFull>()("BackendFull", {
  backend: Schema.String,
  limit: Schema.Int
}) {
  override get message(): string {
    return `The back end "${this.backend}" has reached its limit of ${this.limit} sessions; try again later`
  }
}

/** A modern client's own calls occupy all of its processes (`maxLanes`). */
export class LanesTaken extends Schema.TaggedError<LanesTaken>()("LanesTaken", {
  backend: Schema.String,
  limit: Schema.Int
}) {
  override get message(): string {
    return `All ${this.limit} processes of this client on "${this.backend}" are busy with calls that run or wait for input; ` +
      "answer those calls, or try again later"
  }
}

/** A modern client has reached the limit of running requests (`maxInFlight`). */
export class TooManyCalls extends Schema.TaggedError<TooManyCalls>()("TooManyCalls", {
  backend: Schema.String,
  limit: Schema.Int
}) {
  override get message(): string {
    return `This client has reached its limit of ${this.limit} running requests on "${this.backend}"; try again later`
  }
}

/** The back end cools down after several failed starts in a row: no start is tried for a while (`sessions/Cooldown.ts`). */
export class CoolingDown extends Schema.TaggedError<CoolingDown>()("CoolingDown", {
  backend: Schema.String,
  failures: Schema.Int,
  seconds: Schema.Int
}) {
  // Leaves out the failure's text, which may hold another client's data.
  override get message(): string {
    return `The back end "${this.backend}" failed to start ${this.failures} times in a row; the gateway tries again in ` +
      `${this.seconds} s`
  }
}

/** The database with the records of sleeping sessions does not answer. */
export class RecordsUnreachable extends Schema.TaggedError<RecordsUnreachable>()("RecordsUnreachable", {}) {
  override get message(): string {
    return "The database with the sleeping sessions does not answer; try again later"
  }
}

/** The session moved to another replica while the request waited. The request was not carried out. */
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
