/** The errors of opening or finding a session. */
import { Data } from "effect"
import type { InitializeRefused } from "../conversation/PooledConnection.ts"
import type { BackendFailed } from "../transports/Transport.ts"

/** The session does not exist or has ended. */
export class UnknownSession extends Data.TaggedError("UnknownSession") {}

/** A session or a lane is not available now. The client may try again later. */
export class NotNow extends Data.Error<{
  readonly _tag: "BackendFull" | "LanesTaken" | "TooManyCalls" | "CoolingDown" | "RecordsUnreachable" | "SessionMoved"
  readonly message: string
  /** When to try again, in seconds, if that is known. */
  readonly retryAfter?: number
}> {}

/** The back end has reached `maxSessionsPerBackend`. */
export const backendFull = (backend: string, limit: number): NotNow =>
  new NotNow({
    _tag: "BackendFull",
    message: `The back end "${backend}" has reached its limit of ${limit} sessions; try again later`
  })

/** A modern client's own calls occupy all of its processes (`maxLanes`). */
export const lanesTaken = (backend: string, limit: number): NotNow =>
  new NotNow({
    _tag: "LanesTaken",
    message: `All ${limit} processes of this client on "${backend}" are busy with calls that run or wait for input; ` +
      "answer those calls, or try again later"
  })

/** A modern client has reached the limit of running requests (`maxInFlight`). */
export const tooManyCalls = (backend: string, limit: number): NotNow =>
  new NotNow({
    _tag: "TooManyCalls",
    message: `This client has reached its limit of ${limit} running requests on "${backend}"; try again later`
  })

/** The back end cools down (`Cooldown.ts`). Leaves out the failure's text, which may hold another client's data. */
export const coolingDown = (backend: string, failures: number, retryAfter: number): NotNow =>
  new NotNow({
    _tag: "CoolingDown",
    message:
      `The back end "${backend}" failed to start ${failures} times in a row; the gateway tries again in ${retryAfter} s`,
    retryAfter
  })

/** The database with the records of sleeping sessions does not answer. */
export const recordsUnreachable = (): NotNow =>
  new NotNow({
    _tag: "RecordsUnreachable",
    message: "The database with the sleeping sessions does not answer; try again later"
  })

/** The session moved to another replica while the request waited. The request was not carried out. */
export const sessionMoved = (): NotNow =>
  new NotNow({ _tag: "SessionMoved", message: "The session has moved to another replica; try again" })

export type LaunchError = BackendFailed | InitializeRefused | UnknownSession | NotNow
