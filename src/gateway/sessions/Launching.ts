/**
 * The lookup of the gateway's pool: opens the connection that a key stands for, a legacy client's session or a modern caller's
 * lane, within the limits of its back end.
 */
import { Clock, Duration, Effect, Option, Ref } from "effect"
import type { Scope } from "effect"
import type { HttpClient } from "effect/http"
import * as SessionKey from "../../SessionKey.ts"
import * as Cooldown from "../backends/Cooldown.ts"
import * as RunningBackend from "../backends/RunningBackend.ts"
import * as GatewayErrors from "../GatewayErrors.ts"
import type * as Callers from "../modern/Callers.ts"
import * as Masking from "../settings/Masking.ts"
import type * as ClientRecord from "./ClientRecord.ts"
import type { Connection, Key } from "./Registry.ts"
import * as Registry from "./Registry.ts"

export const lookup = Effect.fnUntraced(function*(
  registry: Registry.Registry,
  key: Key
): Effect.fn.Return<Connection, GatewayErrors.LaunchError, Scope.Scope | HttpClient.HttpClient> {
  const { callers, connections, opening, running, settings, sleepers } = registry
  const name = SessionKey.backend(key)
  const target = running.get(name)
  const profile = callers.find(key)
  // Whatever lives under an id keeps the id here, to the very end.
  yield* registry.occupy(Registry.idOf(key))
  const record = opening.get(key) ?? Option.getOrUndefined(yield* sleepers.find(key))
  const launch = profile ?? record
  if (target === undefined || launch === undefined) return yield* new GatewayErrors.UnknownSession()
  const { backend, cooldown, counts } = target
  const refusal = Cooldown.check(yield* Ref.get(cooldown), name, yield* Clock.currentTimeMillis)
  if (refusal !== undefined) return yield* refusal
  yield* enter(target, settings.maxSessionsPerBackend)
  if (backend.settings.stateless && record !== undefined) {
    // When the process has gone, the session sleeps; unless it has been ended.
    yield* Effect.addFinalizer(() => record.over ? Effect.void : sleepers.rest(key, record))
  }
  counts.launches++
  const connection = yield* start(registry, target, key, launch).pipe(
    Effect.tap(() => Ref.update(cooldown, Cooldown.succeeded)),
    Effect.tapErrorTag("BackendFailed", (error) => error.shortage === true ? Effect.void : countFailure(target, error)),
    Effect.annotateLogs({ backend: name, session: Masking.shortId(SessionKey.session(key)) })
  )
  // A reload has come in between: it has not seen this one.
  if (running.get(name) !== target) return yield* new GatewayErrors.UnknownSession()
  yield* Effect.acquireRelease(
    Effect.sync(() => connections.set(key, connection)),
    () => Effect.sync(() => connections.get(key) === connection && connections.delete(key))
  )
  return connection
})

/** Counts a session against its back end's limit, until it is closed. */
const enter = ({ backend, sessions }: RunningBackend.RunningBackend, limit: number) =>
  Effect.acquireRelease(
    Effect.flatMap(
      Ref.modify(sessions, (count) => [count < limit, count < limit ? count + 1 : count]),
      (admitted) => admitted ? Effect.void : new GatewayErrors.BackendFull({ backend: backend.name, limit })
    ),
    () => Ref.update(sessions, (count) => count - 1)
  )

/** Starts the connection that a key stands for, and gives it up where it takes too long. */
const start = (
  { callers }: Registry.Registry,
  target: RunningBackend.RunningBackend,
  key: Key,
  launch: Callers.Profile | ClientRecord.ClientRecord
) => {
  const { startTimeout } = target.backend.settings
  const started: Effect.Effect<
    Connection,
    GatewayErrors.BackendFailed | GatewayErrors.InitializeRefused,
    Scope.Scope | HttpClient.HttpClient
  > = "lanes" in launch
    ? RunningBackend.startLane(
      target,
      launch.client,
      (change) => callers.find(key)?.listeners.forEach((listener) => listener(change))
    )
    : RunningBackend.startSession(target, launch)
  return Effect.timeoutOrElse(started, {
    duration: startTimeout,
    orElse: () =>
      new GatewayErrors.BackendFailed({
        reason: `the back end did not answer initialize within ${Duration.format(startTimeout)}`,
        stderr: ""
      })
  })
}

const countFailure = ({ cooldown }: RunningBackend.RunningBackend, error: GatewayErrors.BackendFailed) =>
  Effect.flatMap(
    Clock.currentTimeMillis,
    (now) => Ref.update(cooldown, (state) => Cooldown.failed(state, now, error.message))
  )
