/** Sessions that sleep: what becomes of one whose launch is refused, or that moves to another replica while a request waits for it. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Fiber, Option, Schedule } from "effect"
import { FetchHttpClient } from "effect/http"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as ClientRecord from "../../src/gateway/conversation/ClientRecord.ts"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import * as Endings from "../../src/gateway/sessions/Endings.ts"
import * as GatewayErrors from "../../src/gateway/sessions/GatewayErrors.ts"
import * as Placement from "../../src/gateway/sessions/Placement.ts"
import * as Sessions from "../../src/gateway/sessions/Sessions.ts"
import * as Sleepers from "../../src/gateway/sessions/Sleepers.ts"
import * as SessionKey from "../../src/SessionKey.ts"
import * as SessionPool from "../../src/SessionPool.ts"
import * as Counting from "../kit/cluster/counting.ts"
import * as Kit from "../kit/gateway/gateway.ts"

const message = JsonRpc.classify(JSON.parse(Kit.initializeBody))
if (message?._tag !== "Request") throw new Error("no request")
const [name, principal, id] = ["sleeping", "", "00000000-0000-4000-8000-000000000000"]

/**
 * A gateway's sessions whose ids live here for as long as they are told to; `asked`: how often a sleeper was looked for; `awake`:
 * those that are taken for awake here.
 */
const make = Effect.fnUntraced(function*(options: Partial<Gateway.GatewayOptions> = {}) {
  const state = {
    mayOccupy: true,
    asked: 0,
    awake: new Set<string>(),
    /** What it takes to look for a session, and to remove one: the database. */
    finding: Effect.void,
    unreachable: false,
    database: Effect.void,
    entryTextOf: (_: string): string | undefined => undefined,
    lost: (_: SessionKey.SessionKey): Effect.Effect<void> => Effect.void
  }
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "gateway-"))),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true }))
  )
  /** While this file exists, a started process does not serve. */
  const gate = join(directory, "gate")
  const { args, command } = Counting.backend()
  const entry = {
    command,
    args: ["-c", "while [ -e \"$1\" ]; do sleep 0.02; done; exec sh \"$0\"", ...args, gate],
    stateless: true,
    spares: 0
  }
  const config = yield* Gateway.config({
    backends: {
      [name]: entry,
      broken: { command: "false", stateless: true, spares: 0 },
      stateful: Counting.backend(),
      brokenStateful: { command: "false" }
    },
    ...options
  })
  const memory = yield* Sleepers.make({ maxAsleep: 100, asleepTimeToLive: Duration.hours(1) })
  const sleepers: Sleepers.Sleepers = {
    ...memory,
    find: (key) =>
      Effect.suspend(() => {
        state.asked++
        return Effect.tap(
          Effect.andThen(state.finding, state.unreachable ? new GatewayErrors.RecordsUnreachable() : memory.find(key)),
          (found) => Effect.sync(() => Option.isSome(found) && state.awake.add(key))
        )
      }),
    enter: (key, record) => {
      state.awake.add(key)
      return memory.enter(key, record)
    },
    rest: (key, record) => {
      state.awake.delete(key)
      return memory.rest(key, record)
    },
    remove: (key) => {
      state.awake.delete(key)
      return Effect.andThen(memory.remove(key), state.database)
    }
  }
  const sessions = yield* Sessions.make(config, process.env).pipe(
    Effect.provideService(Placement.Placement, { ...Placement.local, mayOccupy: () => state.mayOccupy }),
    Effect.provideService(Sleepers.MakeSleepers, (_, lost, entryTextOf) => {
      state.entryTextOf = entryTextOf
      state.lost = lost
      return Effect.succeed(sleepers)
    }),
    Effect.provide(FetchHttpClient.layer)
  )
  const until = (holds: (stats: SessionPool.Stats) => boolean) =>
    Effect.repeat(SessionPool.stats(sessions.pool), { until: holds, schedule: Schedule.spaced("10 millis") })
  const open = (id: string, backend = name) => sessions.open(backend, principal, id, message, Kit.initializeBody)
  /** Its process goes, as if it had been idle for long. */
  const sleep = (id: string) =>
    Effect.andThen(
      sessions.vacate((each) => each === id, { reason: "idle", text: "idle" }),
      until(({ retired }) => retired === 0)
    )
  const entryTexts = (backend: string) => state.entryTextOf(backend)
  const hold = Effect.sync(() => writeFileSync(gate, ""))
  const release = Effect.sync(() => rmSync(gate))
  return { sessions, sleepers, state, until, open, sleep, entryTexts, entry, hold, release }
})

const lease = ({ lease }: Sessions.Sessions["Service"], of = id, backend = name) =>
  Effect.scoped(lease(backend, principal, of))

describe("a session that has moved to another replica", () => {
  it.live("while its process started is not opened here: the request is to come again, and the process is gone", () =>
    Effect.gen(function*() {
      const { hold, open, release, sessions, state, until } = yield* make()
      yield* hold
      const opening = yield* Effect.forkChild(open(id), { startImmediately: true })
      const started = yield* Effect.repeat(Effect.sync(() => Kit.children(process.pid)), {
        until: (children) => children.length > 0,
        schedule: Schedule.spaced("10 millis")
      })
      state.mayOccupy = false
      yield* release
      assert.strictEqual((yield* Effect.flip(Fiber.join(opening)))._tag, "SessionMoved")
      yield* until(({ idle, launching, retired }) => launching + idle + retired === 0)
      assert.deepStrictEqual(started.filter(Kit.alive), [])
      assert.deepStrictEqual([...yield* sessions.asleep], [])
    }))

  it.live("before its process was to start is not opened here", () =>
    Effect.gen(function*() {
      const { open, sessions, state } = yield* make()
      state.mayOccupy = false
      const before = Kit.children(process.pid)
      assert.strictEqual((yield* Effect.flip(open(id)))._tag, "SessionMoved")
      assert.deepStrictEqual(Kit.children(process.pid), before)
      assert.strictEqual((yield* SessionPool.stats(sessions.pool)).launchFailures, 1)
    }))

  it.live("before it was woken is not taken from whoever has it now", () =>
    Effect.gen(function*() {
      const { open, sessions, sleep, state } = yield* make()
      yield* open(id)
      yield* sleep(id)
      const { asked } = state
      state.mayOccupy = false
      assert.strictEqual((yield* Effect.flip(lease(sessions)))._tag, "SessionMoved")
      assert.strictEqual(state.asked, asked)
      // It is back.
      state.mayOccupy = true
      yield* lease(sessions)
      assert.isAbove(state.asked, asked)
    }))
})

const other = "00000000-0000-4000-8000-000000000001"

describe("a session that cannot be woken", () => {
  it.live("because nobody has entered its id takes no place, and nothing is launched", () =>
    Effect.gen(function*() {
      const { open, sessions, state } = yield* make({ maxSessions: 1 })
      yield* open(id)
      assert.strictEqual((yield* Effect.flip(lease(sessions, other)))._tag, "UnknownSession")
      const { closes, idle, launchFailures, misses } = yield* SessionPool.stats(sessions.pool)
      assert.deepStrictEqual([closes.Evicted, idle, launchFailures, misses, state.asked], [0, 1, 0, 1, 0])
    }))

  it.live("because its back end has as many as it may, or the pool has, sleeps on", () =>
    Effect.gen(function*() {
      const cases = [
        ["BackendFull", { maxSessionsPerBackend: 1 }],
        ["CapacityExceeded", { maxSessions: 1, acquireTimeout: "100 millis" }]
      ] as const
      for (const [tag, limit] of cases) {
        const { open, sessions, sleep, sleepers, state } = yield* make(limit)
        yield* open(id)
        yield* sleep(id)
        assert.deepStrictEqual([...state.awake], [])
        // Another one takes the place, and is in use.
        yield* open(other)
        yield* sessions.lease(name, principal, other)
        const error = yield* Effect.flip(lease(sessions))
        assert.strictEqual(error._tag === "SessionPoolError" ? error.reason._tag : error._tag, tag)
        assert.deepStrictEqual([...state.awake], [`${name}/${other}`])
        assert.isTrue(yield* sleepers.has(SessionKey.makeUnsafe(name, id)))
      }
    }).pipe(Effect.scoped))

  it.live("because its back end does not start, or is left alone for a while, sleeps on", () =>
    Effect.gen(function*() {
      const { sessions, sleepers, state } = yield* make()
      // It was opened while its program was well.
      yield* sleepers.rest(SessionKey.makeUnsafe("broken", id), ClientRecord.make(1, Kit.initializeBody, {}))
      const failure = Effect.map(Effect.flip(lease(sessions, id, "broken")), ({ _tag }) => _tag)
      assert.strictEqual(yield* failure, "BackendFailed")
      yield* Effect.repeat(failure, { until: (tag) => tag === "CoolingDown" })
      yield* Effect.repeat(Effect.sync(() => state.awake.size), {
        until: (size) => size === 0,
        schedule: Schedule.spaced("10 millis")
      })
      assert.deepStrictEqual([...yield* sessions.asleep], [["broken", 1]])
    }))
})

describe("while the database hangs", () => {
  /** Two sessions, and their processes. */
  const two = Effect.gen(function*() {
    const made = yield* make()
    const before = Kit.children(process.pid)
    yield* Effect.all([made.open(id), made.open(other)], { concurrency: "unbounded" })
    const started = Kit.children(process.pid).filter((pid) => !before.includes(pid))
    assert.lengthOf(started, 2)
    const written = yield* Deferred.make<void>()
    made.state.database = Deferred.await(written)
    return { ...made, started, written }
  })
  const gone = (pids: ReadonlyArray<number>) =>
    Effect.promise(() => Kit.eventually("the processes are gone", () => !pids.some(Kit.alive)))

  it.live("a session that is deleted has no process any more, and does not wake", () =>
    Effect.gen(function*() {
      const { sessions, started, until, written } = yield* two
      const ending = yield* Effect.forkChild(Effect.all([id, other].map((id) => sessions.end(name, principal, id)), {
        concurrency: "unbounded"
      }))
      yield* gone(started)
      yield* until(({ retired }) => retired === 0)
      assert.isUndefined(ending.pollUnsafe())
      assert.strictEqual((yield* Effect.flip(lease(sessions)))._tag, "UnknownSession")
      yield* Deferred.succeed(written, undefined)
      assert.isTrue((yield* Fiber.join(ending)).every(Option.isSome))
    }))

  it.live("a session that cannot sleep is ended, or not opened, without waiting for it", () =>
    Effect.gen(function*() {
      const { open, sessions, state } = yield* make()
      state.finding = Effect.never
      state.database = Effect.never
      assert.strictEqual((yield* Effect.flip(open(id, "brokenStateful")))._tag, "BackendFailed")
      yield* open(id, "stateful")
      assert.isTrue(Option.isSome(yield* sessions.end("stateful", principal, id)))
      assert.isTrue(Option.isNone(yield* sessions.end("stateful", principal, id)))
      assert.strictEqual(state.asked, 0)
    }))

  it.live("a session that cannot be looked for is removed later, which is not waited for too", () =>
    Effect.gen(function*() {
      const { sessions, sleepers, state } = yield* make()
      const key = SessionKey.makeUnsafe(name, id)
      yield* sleepers.rest(key, ClientRecord.make(1, Kit.initializeBody, {}))
      state.unreachable = true
      state.database = Effect.never
      assert.isTrue(Option.isNone(yield* sessions.end(name, principal, id)))
      assert.isFalse(yield* sleepers.has(key))
    }))

  it.live("a reload ends all sessions of a changed back end at once", () =>
    Effect.gen(function*() {
      const { sessions, started, written } = yield* two
      const config = yield* Gateway.config({ backends: { [name]: { command: "false", stateless: true } } })
      const reloading = yield* Effect.forkChild(sessions.reload(config.backends))
      yield* gone(started)
      assert.isUndefined(reloading.pollUnsafe())
      yield* Deferred.succeed(written, undefined)
      assert.deepStrictEqual((yield* Fiber.join(reloading)).changed, [name])
    }))
})

describe("expired sessions before the cleanup", () => {
  const expired = Effect.gen(function*() {
    const before = Kit.children(process.pid)
    const made = yield* make({ idleTimeToLive: "50 millis", cleanupInterval: "1 hour" })
    yield* Effect.all([made.open(id), made.open(id, "stateful")])
    yield* Effect.repeat(SessionPool.keys(made.sessions.pool), {
      until: (keys) => keys.length === 0,
      schedule: Schedule.spaced("10 millis")
    })
    return { ...made, processes: Kit.children(process.pid).filter((pid) => !before.includes(pid)) }
  })

  it.live("wakes an expired session of a stateless back end, and does not know another", () =>
    Effect.gen(function*() {
      const { sessions } = yield* expired
      yield* lease(sessions)
      assert.strictEqual((yield* Effect.flip(lease(sessions, id, "stateful")))._tag, "UnknownSession")
      assert.strictEqual((yield* SessionPool.stats(sessions.pool)).launches, 3)
    }))

  it.live("closes an expired session as idle when its client deletes it, and never wakes it", () =>
    Effect.gen(function*() {
      const { processes, sessions, until } = yield* expired
      assert.lengthOf(processes, 2)
      assert.isTrue(Option.isSome(yield* sessions.end(name, principal, id)))
      assert.isTrue(Option.isNone(yield* sessions.end("stateful", principal, id)))
      yield* until(({ retired }) => retired === 0)
      assert.deepStrictEqual(processes.filter(Kit.alive), [])
      assert.strictEqual((yield* SessionPool.stats(sessions.pool)).closes.IdleTimeout, 2)
      assert.strictEqual((yield* Effect.flip(lease(sessions)))._tag, "UnknownSession")
    }))

  it.live("waits for the process of an expired session when its id moves to another replica", () =>
    Effect.gen(function*() {
      const { processes, sessions } = yield* expired
      yield* sessions.vacate((each) => each === id, Endings.movesOn)
      assert.deepStrictEqual(processes.filter(Kit.alive), [])
    }))
})

describe("a session that is woken while it is deleted", () => {
  it.live("has no process afterwards", () =>
    Effect.gen(function*() {
      const { open, sessions, sleep, state, until } = yield* make()
      yield* open(id)
      yield* sleep(id)
      // The deletion finds it asleep, and still asks for it when the process of the next call has started.
      const found = yield* Deferred.make<void>()
      state.finding = Deferred.await(found)
      const ending = yield* Effect.forkChild(sessions.end(name, principal, id), { startImmediately: true })
      state.finding = Effect.void
      yield* lease(sessions)
      assert.strictEqual((yield* SessionPool.stats(sessions.pool)).idle, 1)
      yield* Deferred.succeed(found, undefined)
      const gone = Option.getOrThrow(yield* Fiber.join(ending))
      yield* gone
      yield* until(({ idle, retired }) => idle + retired === 0)
      assert.strictEqual((yield* Effect.flip(lease(sessions)))._tag, "UnknownSession")
    }))
})

describe("a session that another replica takes over while its process starts", () => {
  it.live("ends as soon as it has started, whoever waits for it, and does not sleep here", () =>
    Effect.gen(function*() {
      const { hold, open, release, sessions, sleep, state, until } = yield* make()
      yield* open(id)
      yield* sleep(id)
      yield* hold
      const served = yield* Effect.forkChild(
        Effect.scoped(Effect.flatMap(
          sessions.lease(name, principal, id),
          (connection) =>
            Effect.repeat(
              Effect.sync(() =>
                connection._tag === "Bridge" ? connection.request(message, "{}", Effect.void)._tag : connection._tag
              ),
              { until: (tag) => tag === "Over", schedule: Schedule.spaced("10 millis") }
            )
        )),
        { startImmediately: true }
      )
      yield* until(({ launching }) => launching === 1)
      yield* state.lost(SessionKey.makeUnsafe(name, id))
      yield* release
      assert.strictEqual(yield* Fiber.join(served), "Over")
      yield* until(({ active, idle, launching, retired }) => active + idle + launching + retired === 0)
      assert.isTrue(state.awake.has(SessionKey.makeUnsafe(name, id)), "it has not rested")
    }))
})

describe("a session that is ended while its process starts", () => {
  it.live("is not waited for, does not wake, and has no process when it is said to be gone", () =>
    Effect.gen(function*() {
      const { hold, open, release, sessions, sleep, until } = yield* make()
      const before = Kit.children(process.pid)
      yield* open(id)
      yield* sleep(id)
      yield* hold
      const waking = yield* Effect.forkChild(lease(sessions), { startImmediately: true })
      yield* until(({ launching }) => launching === 1)
      const gone = Option.getOrThrow(yield* sessions.end(name, principal, id))
      assert.isUndefined(waking.pollUnsafe())
      yield* release
      yield* gone
      assert.deepStrictEqual(Kit.children(process.pid).filter((pid) => !before.includes(pid)), [])
      assert.strictEqual((yield* Effect.flip(Fiber.join(waking)))._tag, "UnknownSession")
      yield* until(({ idle, launching, retired }) => idle + launching + retired === 0)
      assert.strictEqual((yield* Effect.flip(lease(sessions)))._tag, "UnknownSession")
    }))

  it.live("by a reload is not entered among those that sleep", () =>
    Effect.gen(function*() {
      const { hold, open, release, sessions, until } = yield* make()
      yield* hold
      const opening = yield* Effect.forkChild(open(id), { startImmediately: true })
      yield* until(({ launching }) => launching === 1)
      const config = yield* Gateway.config({ backends: { [name]: { command: "false", stateless: true } } })
      yield* sessions.reload(config.backends)
      assert.isUndefined(opening.pollUnsafe())
      yield* release
      assert.strictEqual((yield* Effect.flip(Fiber.join(opening)))._tag, "UnknownSession")
      yield* until(({ idle, launching, retired }) => idle + launching + retired === 0)
      assert.deepStrictEqual([...yield* sessions.asleep], [])
    }))
})

describe("a reload", () => {
  it.live("after which a back end is not stateless any more forgets its sessions that sleep", () =>
    Effect.gen(function*() {
      const { open, sessions, sleep } = yield* make()
      yield* open(id)
      yield* sleep(id)
      const config = yield* Gateway.config({ backends: { [name]: Counting.backend() } })
      yield* sessions.reload(config.backends)
      assert.deepStrictEqual([...yield* sessions.asleep], [])
    }))

  it.live("that says the same in other words ends nothing, and those who come now are entered with the new ones", () =>
    Effect.gen(function*() {
      const { entry, entryTexts, open, sessions } = yield* make()
      yield* open(id)
      const said = { ...entry, requestTimeout: "300 seconds" as const }
      const config = yield* Gateway.config({
        backends: { [name]: said, broken: { command: "false", stateless: true } }
      })
      const before = entryTexts(name)
      assert.deepStrictEqual((yield* sessions.reload(config.backends)).changed, [])
      assert.strictEqual((yield* SessionPool.stats(sessions.pool)).idle, 1)
      assert.notStrictEqual(entryTexts(name), before)
      assert.include(entryTexts(name) ?? "", "300 seconds")
    }))
})
