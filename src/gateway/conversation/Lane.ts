/**
 * One connection to a server (a process, or another `Transport`) that carries out calls of modern clients. To a legacy
 * server the gateway is the client: it does the handshake, with the caller's info and capabilities.
 */
import type { Scope } from "effect"
import { Deferred, Effect, Option, RcMap } from "effect"
import type * as Dialect from "../protocol/Dialect.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import type * as RequestHeaders from "../protocol/RequestHeaders.ts"
import { version as ownVersion } from "../protocol/version.ts"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import type { BackendFailed, Transport } from "../transports/Transport.ts"
import * as InFlight from "./InFlight.ts"
import { LaneCalls } from "./LaneCalls.ts"
import type { Queued } from "./LaneCalls.ts"
import type * as Mailbox from "./Mailbox.ts"
import * as PooledConnection from "./PooledConnection.ts"
import type { InputRequest } from "./Questions.ts"

/** A server's description of itself, from its handshake. */
export interface Handshake {
  readonly era: Dialect.Era
  /** In the form of revision 2026-07-28. */
  readonly capabilities: Json.JsonObject
  readonly serverInfo: unknown
  readonly instructions: unknown
}

/** A call on a lane, until it is over. */
export interface RunningCall {
  /** The client's newest request for this call. */
  readonly call: () => Modern.Call
  /**
   * Reads the events of the call, in place of an earlier reader. The first `take` waits at most for `streamAfter`. The last event is
   * `Ended`.
   */
  readonly read: () => Mailbox.Reader<Queued>
  /** The questions that are not answered yet. */
  readonly inputRequests: () => ReadonlyArray<InputRequest>
  /** Parks the call: without a reader, its notifications are kept only within limits. */
  readonly park: () => void
  /** Continues the call for another request of the client, which carries answers by key. */
  readonly resume: (call: Modern.Call) => void
  /** Ends the call with this result, and tells the server why. No-op once the call is over. */
  readonly complete: (result: Json.JsonObject, reason: string) => void
  /** Ends the call, and tells the server why. No-op once the call is over. */
  readonly cancel: (reason: string) => void
  readonly isOver: () => boolean
}

/** A change that the server reports and that belongs to no call. */
export interface Change {
  readonly method: string
  readonly uri: string | undefined
  readonly params: unknown
}

export interface Lane extends PooledConnection.PooledConnection {
  readonly _tag: "Lane"
  readonly handshake: Handshake
  /** Sends a call to the server. `release` runs once, when the call is over. */
  readonly call: (call: Modern.Call, exclusive: boolean, release: Effect.Effect<void>) => RunningCall
  /**
   * Subscribes to changes of these resources, for the scope. Returns the resources whose changes the server reports.
   */
  readonly watchResources: (
    uris: ReadonlyArray<string>
  ) => Effect.Effect<ReadonlyArray<string>, never, Scope.Scope>
  /** True if the lane must not be used again, because messages of a cancelled call may still come. */
  readonly isSpoilt: () => boolean
  /** Completes when the lane takes no further calls: it has ended, or is about to. */
  readonly retired: Deferred.Deferred<void>
}

export interface Options extends InFlight.Timeouts {
  readonly client: Modern.Client
  /** The era of the server. `undefined` if unknown; the handshake then finds it out. */
  readonly era: Dialect.Era | undefined
  /** The handshake, if it need not be repeated. */
  readonly handshake: Handshake | undefined
  /**
   * Longest wait for an answer to `server/discover`, in milliseconds. A server that does not answer counts as legacy.
   */
  readonly probeTimeout: number
  readonly limits: Mailbox.Limits
  readonly changed: (change: Change) => void
  /** Called when the server gave a call no answer, with the reason. */
  readonly unanswered: (reason: string) => void
  readonly paramHeaders: RequestHeaders.ParamHeaders
}

/** Opens a connection to a server for a caller. */
export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>,
  options: Options,
  metrics: RequestMetrics
): Effect.fn.Return<Lane, BackendFailed | PooledConnection.InitializeRefused, R | Scope.Scope> {
  const gone = yield* PooledConnection.gone
  const server = yield* start
  const background = yield* InFlight.background
  const retired = yield* Deferred.make<void>()
  /** The number of messages that wait for the server to read. */
  let unread = 0
  const write = (message: JsonRpc.Message) => {
    if (server.offer(message)) return
    unread++
    background.run(Effect.ensuring(
      server.send(message),
      Effect.sync(() => {
        unread--
        calls.announceRoom()
      })
    ))
  }
  const calls: LaneCalls = new LaneCalls({ write, isBehind: () => unread > maxUnread }, background, options, metrics)
  const end = (reason: string, isOfBackend?: boolean) =>
    Effect.andThen(
      Effect.sync(() => calls.end(reason, isOfBackend)),
      Effect.asVoid(Deferred.succeed(retired, undefined))
    )
  yield* server.attach({
    receive: (message, request) => calls.receive(message, request),
    garbage: () => metrics.garbage(),
    room: Effect.suspend(() => calls.room)
  })
  yield* Effect.addFinalizer(() => end("the session has ended"))
  yield* Effect.forkScoped(Effect.flatMap(Deferred.await(server.ended), (failure) => end(failure.message, true)))
  const handshake = options.handshake ?? (yield* shakeHands(server, calls, write, options))
  calls.begin(handshake)
  return {
    _tag: "Lane",
    ended: server.ended,
    gone,
    record: undefined,
    handshake,
    call: (call, exclusive, release) => calls.call(call, exclusive, release),
    watchResources: yield* watcher(calls, background.run),
    isSpoilt: () => calls.isSpoilt(),
    retired,
    activity: () => ({ pid: server.pid, client: options.client.name, streams: 0, ...calls.activity() }),
    end: (reason) => end(reason)
  }
})

/** If a server leaves more messages than this unread, the gateway stops reading from it. */
const maxUnread = 1000
/** Longest wait for the answer to `resources/subscribe`. */
const subscribeTimeout = "5 seconds"

const ownInfo = { name: "effect-session-pool", version: ownVersion }

/** The newest legacy revision. The server may answer with an earlier one. */
const legacyVersion = Modern.legacyVersions.at(-1)

/** Finds out the era of the server, unless it is known, and does the handshake of that era. */
const shakeHands = Effect.fnUntraced(function*(
  server: Transport,
  calls: LaneCalls,
  write: (message: JsonRpc.Message) => void,
  { client, era, probeTimeout }: Options
) {
  const clientInfo = client.info ?? ownInfo
  const capabilities = Modern.legacyCapabilities(client.capabilities)
  const ask = (method: string, params: unknown) => PooledConnection.answerOf(server, calls.request(method, params))
  const refused = (answer: JsonRpc.Response) => new PooledConnection.InitializeRefused({ answer })
  if (era !== "legacy") {
    const probe = ask("server/discover", { _meta: Modern.ownMeta(clientInfo, capabilities) })
    // A server that does not answer in time gets the legacy handshake.
    const found = era === "modern" ? yield* Effect.asSome(probe) : yield* Effect.timeoutOption(probe, probeTimeout)
    if (Option.isSome(found) && (era === "modern" || Modern.speaksModern(found.value))) {
      const answer = found.value
      if (answer.failed) return yield* refused(answer)
      const handshake: Handshake = {
        era: "modern",
        capabilities: Json.objectOf(Json.field(answer.result, "capabilities")),
        serverInfo: Json.at(answer.result, "_meta", Modern.metaKeys.serverInfo),
        instructions: Json.field(answer.result, "instructions")
      }
      return handshake
    }
  }
  const answer = yield* ask("initialize", { protocolVersion: legacyVersion, capabilities, clientInfo })
  if (answer.failed) return yield* refused(answer)
  write(JsonRpc.notification("notifications/initialized"))
  const handshake: Handshake = {
    era: "legacy",
    capabilities: Modern.serverCapabilities(Json.field(answer.result, "capabilities")),
    serverInfo: Json.field(answer.result, "serverInfo"),
    instructions: Json.field(answer.result, "instructions")
  }
  return handshake
})

/** Keeps a subscription to each resource while at least one client watches it. */
const watcher = Effect.fnUntraced(function*(calls: LaneCalls, run: InFlight.Background["run"]) {
  /** True for resources whose changes the server reports. */
  const watched = yield* RcMap.make({
    lookup: (uri: string) => {
      const unsubscribe = Effect.sync(() => {
        if (!calls.over) run(calls.request("resources/unsubscribe", { uri }))
      })
      // The wait for the server's answer is not part of the acquisition, so a client that disconnects interrupts it.
      return Effect.acquireRelease(Effect.void, () => unsubscribe).pipe(
        Effect.andThen(calls.request("resources/subscribe", { uri })),
        Effect.timeoutOption(subscribeTimeout),
        Effect.map((answer) => Option.isSome(answer) && !answer.value.failed)
      )
    }
  })
  return (uris: ReadonlyArray<string>) => Effect.filter(uris, (uri) => RcMap.get(watched, uri), { concurrency: 10 })
})
