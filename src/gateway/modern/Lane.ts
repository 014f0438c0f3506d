/**
 * One connection to a server, a process or what stands for one, that carries out the calls of modern clients. With a legacy
 * server the gateway is the client: it does the handshake, with what the caller says of itself.
 */
import type { Scope } from "effect"
import { Clock, Deferred, Effect, Option } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { Transport } from "../backends/Transport.ts"
import type { BackendFailed } from "../GatewayErrors.ts"
import { InitializeRefused } from "../GatewayErrors.ts"
import type { GatewayMetrics } from "../GatewayMetrics.ts"
import * as JsonRpc from "../messages/JsonRpc.ts"
import * as JsonText from "../messages/JsonText.ts"
import * as PooledConnection from "../sessions/PooledConnection.ts"
import { version as ownVersion } from "../version.ts"
import type { Event, Limits } from "./CallEvents.ts"
import * as Dialect from "./Dialect.ts"
import { LaneCalls } from "./LaneCalls.ts"
import * as Modern from "./Modern.ts"
import type * as ParamHeaders from "./ParamHeaders.ts"

/** What a server has said of itself. */
export interface Handshake {
  readonly era: Dialect.Era
  /** JSON of each, as this revision has it. */
  readonly capabilities: string
  readonly serverInfo: string | undefined
  readonly instructions: string | undefined
}

/** What a server asks a call's client. */
export interface InputRequest {
  readonly key: string
  /** JSON of its method and parameters. */
  readonly text: string
}

/** A call that runs. */
export interface RunningCall {
  /** The next events, at once or when there are some. */
  readonly take: Effect.Effect<NonEmptyReadonlyArray<Event>>
  /** What is asked and not answered yet. */
  readonly inputRequests: () => ReadonlyArray<InputRequest>
  /** Nobody reads the events for now: notifications are kept within limits only. */
  readonly park: () => void
  /** Goes on for another request of the client, with its answers by key to what was asked. */
  readonly resume: (call: Modern.Call) => void
  /** Ends it; the server is told why. Does nothing once it is over. */
  readonly cancel: (reason: string) => void
  readonly isOver: () => boolean
}

/** The server's news that belong to no call. */
export interface Change {
  readonly method: string
  readonly uri: string | undefined
  /** JSON of the parameters. */
  readonly params: string
}

export interface Lane extends PooledConnection.PooledConnection {
  readonly _tag: "Lane"
  readonly handshake: Handshake
  /** Hands a call to the server; `release` runs once, when it is over. */
  readonly call: (call: Modern.Call, exclusive: boolean, release: Effect.Effect<void>) => RunningCall
  /** Hears of changes of these resources for as long as the scope is open; of which the server tells. */
  readonly watchResources: (
    uris: ReadonlyArray<string>
  ) => Effect.Effect<ReadonlyArray<string>, never, Scope.Scope>
  /** It should not be used again: it cannot be told any more which call a message is for. */
  readonly isSpoilt: () => boolean
  /** Completes when it is used no further: it has ended, or is to. */
  readonly retired: Deferred.Deferred<void>
}

export interface Options {
  readonly client: Modern.Client
  /** What is known of the server; `undefined`: it is asked. */
  readonly era: Dialect.Era | undefined
  /** How long a server may take to say that it does not know `server/discover`, in milliseconds. */
  readonly probeTimeout: number
  readonly limits: Limits
  readonly changed: (change: Change) => void
  /** Whether a process of this back end has ever asked a client for something. */
  readonly asks: { asked: boolean }
  readonly paramHeaders: ParamHeaders.ParamHeaders
}

/** Opens a connection to a server for a caller. */
export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>,
  options: Options,
  metrics: GatewayMetrics
): Effect.fn.Return<Lane, BackendFailed | InitializeRefused, R | Scope.Scope> {
  const gone = yield* PooledConnection.gone
  const server = yield* start
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const retired = yield* Deferred.make<void>()
  /** Messages that wait until the server reads. */
  let unread = 0
  const write = (text: string) => {
    const line = JsonRpc.toLine(text)
    if (server.offer(line)) return
    unread++
    run(Effect.ensuring(
      server.send(line),
      Effect.sync(() => {
        unread--
        calls.room.announce()
      })
    ))
  }
  const isBehind = () => unread > maxUnread
  const calls: LaneCalls = new LaneCalls({ write, isBehind, run, clock: yield* Clock.Clock }, options, metrics)
  const end = (reason: string) =>
    Effect.andThen(Effect.sync(() => calls.end(reason)), Effect.asVoid(Deferred.succeed(retired, undefined)))
  yield* server.attach({ receive: (line) => calls.receive(line), room: calls.room.wait })
  yield* Effect.addFinalizer(() => end("the session has ended"))
  yield* Effect.forkScoped(Effect.flatMap(Deferred.await(server.ended), (failure) => end(failure.message)))
  const { answer, handshake } = yield* shakeHands(server, calls, write, options)
  calls.begin(handshake, handshake.era === "modern" ? Dialect.modern : Dialect.legacy)
  return {
    _tag: "Lane",
    ended: server.ended,
    gone,
    answer,
    record: undefined,
    handshake,
    call: (call, exclusive, release) => calls.call(call, exclusive, release),
    watchResources: watcher(calls, run),
    isSpoilt: () => calls.isSpoilt(),
    retired,
    activity: () => ({ pid: server.pid, client: options.client.name, streams: 0, ...calls.activity() }),
    end
  }
})

/** Messages of the gateway that a server may leave unread before it is listened to no further. */
const maxUnread = 1000
/** How long a server may take to say whether it tells of a resource's changes. */
const subscribeTimeout = "5 seconds"

const ownInfo = JSON.stringify({ name: "effect-session-pool", version: ownVersion })

/** The newest revision before this one, which the server may answer with an earlier one. */
const legacyVersion = Modern.legacyVersions.at(-1)

/** Asks the server for its revisions, unless they are known, and does what its era asks for. */
const shakeHands = Effect.fnUntraced(function*(
  server: Transport,
  calls: LaneCalls,
  write: (text: string) => void,
  { client, era, probeTimeout }: Options
) {
  const info = client.info ?? ownInfo
  const capabilities = Modern.legacyCapabilities(client.capabilities)
  // The answer, if the server lives to give one.
  const ask = (method: string, params: ReadonlyArray<JsonText.Member>) =>
    Effect.flatMap(
      calls.request(method, JsonText.make(params)),
      (answer) =>
        Deferred.isDoneUnsafe(server.ended)
          ? Effect.flatMap(Deferred.await(server.ended), Effect.fail)
          : Effect.succeed(answer)
    )
  if (era !== "legacy") {
    const probe = ask("server/discover", [["_meta", Modern.ownMeta(info, capabilities)]])
    // A server that says nothing is asked in the other way.
    const found = era === "modern" ? yield* Effect.asSome(probe) : yield* Effect.timeoutOption(probe, probeTimeout)
    const answer = Option.getOrElse(found, () => "{}")
    if (era === "modern" || Modern.speaksModern(answer)) {
      if (JsonRpc.isError(answer)) return yield* new InitializeRefused({ answer })
      const result = JsonText.member(answer, "result") ?? "{}"
      const handshake: Handshake = {
        era: "modern",
        capabilities: JsonText.member(result, "capabilities") ?? "{}",
        serverInfo: JsonText.member(JsonText.member(result, "_meta") ?? "{}", Modern.metaKeys.serverInfo),
        instructions: JsonText.member(result, "instructions")
      }
      return { answer, handshake }
    }
  }
  const answer = yield* ask("initialize", [
    ["protocolVersion", JSON.stringify(legacyVersion)],
    ["capabilities", capabilities],
    ["clientInfo", info]
  ])
  if (JsonRpc.isError(answer)) return yield* new InitializeRefused({ answer })
  write("{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}")
  const result = JsonText.member(answer, "result") ?? "{}"
  const handshake: Handshake = {
    era: "legacy",
    capabilities: Modern.serverCapabilities(JsonText.member(result, "capabilities") ?? "{}"),
    serverInfo: JsonText.member(result, "serverInfo"),
    instructions: JsonText.member(result, "instructions")
  }
  return { answer, handshake }
})

/** Subscribes to a resource for as long as somebody watches it. */
const watcher = (calls: LaneCalls, run: (effect: Effect.Effect<unknown>) => unknown): Lane["watchResources"] => {
  const watched = new Map<string, number>()
  /** Whether this is the first to watch it. */
  const enter = (uri: string) => {
    const others = watched.get(uri) ?? 0
    watched.set(uri, others + 1)
    return others === 0
  }
  const leave = (uri: string) => {
    const left = (watched.get(uri) ?? 1) - 1
    if (left > 0) return watched.set(uri, left)
    watched.delete(uri)
    if (!calls.over) run(calls.request("resources/unsubscribe", JSON.stringify({ uri })))
  }
  return (uris) =>
    Effect.flatMap(
      // The server's answer is waited for outside: whoever listens may go meanwhile.
      Effect.acquireRelease(
        Effect.sync(() => new Set(uris.filter(enter))),
        () => Effect.sync(() => uris.forEach(leave))
      ),
      (first) =>
        Effect.filter(uris, (uri) =>
          first.has(uri)
            ? calls.request("resources/subscribe", JSON.stringify({ uri })).pipe(
              Effect.timeoutOption(subscribeTimeout),
              Effect.map((answer) => Option.isSome(answer) && !JsonRpc.isError(answer.value))
            )
            : Effect.succeed(true), { concurrency: 10 })
    )
}
