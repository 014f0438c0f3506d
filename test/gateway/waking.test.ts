/** Sessions that sleep: what becomes of one whose launch is refused, or that moves to another replica while a request waits for it. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Fiber, Option, Schedule } from "effect"
import { FetchHttpClient } from "effect/http"
import { rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as ClientRecord from "../../src/gateway/conversation/ClientRecord.ts"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Endings from "../../src/gateway/sessions/Endings.ts"
import * as GatewayErrors from "../../src/gateway/sessions/GatewayErrors.ts"
import { Key } from "../../src/gateway/sessions/Key.ts"
import * as Placement from "../../src/gateway/sessions/Placement.ts"
import * as Sessions from "../../src/gateway/sessions/Sessions.ts"
import * as Sleepers from "../../src/gateway/sessions/Sleepers.ts"
import * as SessionPool from "../../src/SessionPool.ts"
import * as Counting from "../kit/cluster/counting.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as Told from "../kit/gateway/told.ts"

const message = Told.requestOf(Kit.initializeBody)
const [name, principal, id] = ["sleeping", { id: "" }, "00000000-0000-4000-8000-000000000000"]
const other = "00000000-0000-4000-8000-000000000001"
const keyOf = (of = id, backend = name) => new Key(backend, principal, of)
const key = keyOf()
const record = ClientRecord.make(message)
const schedule = Schedule.spaced("10 millis")

/** Which error an effect ends with. */
const tagOf = <A>(effect: Effect.Effect<A, { readonly _tag: string }>) =>
  Effect.map(Effect.flip(effect), ({ _tag }) => _tag)

/** A gateway's sessions on a placement and on a store of sleepers that the test controls. */
const make = Effect.fnUntraced(function*(options: Partial<Gateway.GatewayOptions> = {}) {
  /** What it takes the database to find a session, to enter one, and to remove one. */
  const database: {
    finding: Effect.Effect<void, GatewayErrors.NotNow>
    entering: Effect.Effect<void>
    removing: Effect.Effect<void>
  } = {
    finding: Effect.void,
    entering: Effect.void,
    removing: Effect.void
  }
  const state = {
    mayOccupy: true,
    /** How often a sleeper was looked for. */
    asked: 0,
    /** The sessions that the store takes for awake here. */
    awake: new Set<string>(),
    entryTextOf: (_: string): string | undefined => undefined,
    lost: (_: Key): Effect.Effect<void> => Effect.void
  }
  const before = Kit.children(process.pid)
  /** While this file exists, a started process does not serve. */
  const gate = join(Serving.directory(), "gate")
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
    take: (key) =>
      Effect.suspend(() => {
        state.asked++
        return Effect.tap(
          Effect.andThen(database.finding, memory.take(key)),
          (found) => Effect.sync(() => Option.isSome(found) && state.awake.add(key.text))
        )
      }),
    enter: (key, record) => {
      state.awake.add(key.text)
      return Effect.andThen(memory.enter(key, record), database.entering)
    },
    rest: (key, record) => {
      state.awake.delete(key.text)
      return memory.rest(key, record)
    },
    remove: (key) => {
      state.awake.delete(key.text)
      return Effect.andThen(memory.remove(key), database.removing)
    }
  }
  const sessions = yield* Sessions.make(config, process.env, Infinity, () => Effect.never).pipe(
    Effect.provideService(Placement.Placement, { ...Placement.local, mayOccupy: () => state.mayOccupy }),
    Effect.provideService(Sleepers.MakeSleepers, (_, lost, entryTextOf) => {
      Object.assign(state, { entryTextOf, lost })
      return Effect.succeed(sleepers)
    }),
    Effect.provide(FetchHttpClient.layer)
  )
  const stats = SessionPool.stats(sessions.pool)
  const until = (holds: (stats: SessionPool.Stats) => boolean) => Effect.repeat(stats, { until: holds, schedule })
  const processes = () => Kit.children(process.pid).filter((pid) => !before.includes(pid))
  return {
    sessions,
    sleepers,
    database,
    state,
    stats,
    entry,
    processes,
    /** The pool holds nothing, and no process is left. */
    empty: Effect.gen(function*() {
      yield* until(({ active, idle, launching, retired }) => active + idle + launching + retired === 0)
      assert.deepStrictEqual(processes().filter(Kit.alive), [])
    }),
    launching: until(({ launching }) => launching === 1),
    open: (of = id, backend = name) => sessions.open(keyOf(of, backend), message),
    lease: (of = id, backend = name) => Effect.scoped(sessions.lease(keyOf(of, backend))),
    end: (of = id, backend = name) => sessions.end(keyOf(of, backend)),
    /** The session's process goes, as if it had been idle for long. */
    sleep: Effect.andThen(
      sessions.vacate((each) => each === id, { reason: "idle", text: "idle" }),
      until(({ retired }) => retired === 0)
    ),
    reload: (entry: Gateway.GatewayOptions["backends"][string]) =>
      Effect.flatMap(Gateway.config({ backends: { [name]: entry } }), ({ backends }) => sessions.reload(backends)),
    hold: Effect.sync(() => writeFileSync(gate, "")),
    release: Effect.sync(() => rmSync(gate))
  }
})

/** The same with a session that sleeps. */
const asleep = Effect.fnUntraced(function*(options: Partial<Gateway.GatewayOptions> = {}) {
  const made = yield* make(options)
  yield* made.open()
  yield* made.sleep
  return made
})

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

describe("sessions that move to another replica", () => {
  it.live("a session that moves while its process starts is not opened here, and leaves no process", () =>
    Effect.gen(function*() {
      const { empty, hold, open, processes, release, sessions, state } = yield* make()
      yield* hold
      const opening = yield* fork(open())
      yield* Effect.repeat(Effect.sync(processes), { until: ({ length }) => length > 0, schedule })
      state.mayOccupy = false
      const vacating = yield* fork(sessions.vacate((each) => each === id, Endings.movesOn))
      yield* release
      assert.strictEqual(yield* tagOf(Fiber.join(opening)), "SessionMoved")
      yield* Fiber.join(vacating)
      yield* empty
      assert.deepStrictEqual([...yield* sessions.asleep], [])
    }))

  it.live("a session that has moved wakes here only after it is back", () =>
    Effect.gen(function*() {
      const { lease, state } = yield* asleep()
      const { asked } = state
      state.mayOccupy = false
      assert.strictEqual(yield* tagOf(lease()), "SessionMoved")
      assert.strictEqual(state.asked, asked)
      state.mayOccupy = true
      yield* lease()
      assert.isAbove(state.asked, asked)
    }))

  it.live("a session that another replica takes over ends as soon as its process has started, and does not sleep here", () =>
    Effect.gen(function*() {
      const { empty, hold, launching, lease, release, state } = yield* asleep()
      yield* hold
      const served = yield* fork(lease())
      yield* launching
      yield* state.lost(key)
      yield* release
      assert.strictEqual(yield* tagOf(Fiber.join(served)), "SessionMoved")
      yield* empty
      assert.isTrue(state.awake.has(key.text), "it has not rested")
    }))
})

describe("sessions that cannot wake", () => {
  it.live("an unknown session takes no place and launches nothing", () =>
    Effect.gen(function*() {
      const { lease, open, state, stats } = yield* make({ maxSessions: 1 })
      yield* open()
      assert.strictEqual(yield* tagOf(lease(other)), "UnknownSession")
      const { closes, idle, launchFailures, misses } = yield* stats
      assert.deepStrictEqual([closes.Evicted, idle, launchFailures, misses, state.asked], [0, 1, 0, 1, 0])
    }))

  it.live.each(
    [
      ["its back end", "BackendFull", { maxSessionsPerBackend: 1 }],
      ["the pool", "CapacityExceeded", { maxSessions: 1, acquireTimeout: "100 millis" }]
    ] as const
  )("a session sleeps on when %s is full", ([_, tag, limit]) =>
    Effect.gen(function*() {
      const { lease, open, sessions, sleepers, state } = yield* asleep(limit)
      assert.deepStrictEqual([...state.awake], [])
      // Another one takes the place, and is in use.
      yield* open(other)
      yield* sessions.lease(keyOf(other))
      const error = yield* Effect.flip(lease())
      assert.strictEqual(error._tag === "SessionPoolError" ? error.reason._tag : error._tag, tag)
      assert.deepStrictEqual([...state.awake], [keyOf(other).text])
      assert.isTrue(yield* sleepers.has(key))
    }).pipe(Effect.scoped))

  it.live("a session sleeps on when its back end does not start or cools down", () =>
    Effect.gen(function*() {
      const { lease, sessions, sleepers, state } = yield* make()
      // It was opened while its program was well.
      yield* sleepers.rest(keyOf(id, "broken"), record)
      const failure = tagOf(lease(id, "broken"))
      assert.strictEqual(yield* failure, "BackendFailed")
      yield* Effect.repeat(failure, { until: (tag) => tag === "CoolingDown" })
      yield* Effect.repeat(Effect.sync(() => state.awake.size), { until: (size) => size === 0, schedule })
      assert.deepStrictEqual([...yield* sessions.asleep], [["broken", 1]])
    }))
})

describe("a hanging database", () => {
  /** Two sessions whose removal waits for `written`. */
  const two = Effect.gen(function*() {
    const made = yield* make()
    yield* Effect.all([made.open(id), made.open(other)], { concurrency: "unbounded" })
    const started = made.processes()
    assert.lengthOf(started, 2)
    const written = yield* Deferred.make<void>()
    made.database.removing = Deferred.await(written)
    const gone = Effect.promise(() => Kit.eventually("the processes are gone", () => !started.some(Kit.alive)))
    return { ...made, gone, written }
  })

  it.live("a session that is deleted while the database hangs loses its process, and does not wake", () =>
    Effect.gen(function*() {
      const { empty, end, gone, lease, written } = yield* two
      const ending = yield* Effect.forkChild(Effect.all([end(id), end(other)], { concurrency: "unbounded" }))
      yield* gone
      yield* empty
      assert.isUndefined(ending.pollUnsafe())
      assert.strictEqual(yield* tagOf(lease()), "UnknownSession")
      yield* Deferred.succeed(written, undefined)
      assert.isTrue((yield* Fiber.join(ending)).every(Option.isSome))
    }))

  it.live("a session that cannot sleep is ended, or fails to open, without waiting for the database", () =>
    Effect.gen(function*() {
      const { database, end, open, state } = yield* make()
      database.finding = Effect.never
      database.removing = Effect.never
      assert.strictEqual(yield* tagOf(open(id, "brokenStateful")), "BackendFailed")
      yield* open(id, "stateful")
      assert.deepStrictEqual([yield* end(id, "stateful"), yield* end(id, "stateful")].map(Option.isSome), [true, false])
      assert.strictEqual(state.asked, 0)
    }))

  it.live("a session that cannot be taken is removed without waiting for the database", () =>
    Effect.gen(function*() {
      const { database, end, sleepers } = yield* make()
      yield* sleepers.rest(key, record)
      database.finding = GatewayErrors.recordsUnreachable()
      database.removing = Effect.never
      assert.isTrue(Option.isNone(yield* end()))
      assert.isFalse(yield* sleepers.has(key))
    }))

  it.live("a reload ends all sessions of a changed back end at once while the database hangs", () =>
    Effect.gen(function*() {
      const { gone, reload, written } = yield* two
      const reloading = yield* Effect.forkChild(reload({ command: "false", stateless: true }))
      yield* gone
      assert.isUndefined(reloading.pollUnsafe())
      yield* Deferred.succeed(written, undefined)
      assert.deepStrictEqual((yield* Fiber.join(reloading)).changed, [name])
    }))
})

describe("expired sessions before the cleanup", () => {
  const expired = Effect.gen(function*() {
    const made = yield* make({ idleTimeToLive: "50 millis", cleanupInterval: "1 hour" })
    yield* Effect.all([made.open(id), made.open(id, "stateful")])
    yield* Effect.repeat(SessionPool.keys(made.sessions.pool), { until: (keys) => keys.length === 0, schedule })
    return made
  })

  it.live("an expired session wakes if its back end is stateless, and is unknown otherwise", () =>
    Effect.gen(function*() {
      const { lease, stats } = yield* expired
      yield* lease()
      assert.strictEqual(yield* tagOf(lease(id, "stateful")), "UnknownSession")
      assert.strictEqual((yield* stats).launches, 3)
    }))

  it.live("an expired session closes as idle when its client deletes it, and never wakes", () =>
    Effect.gen(function*() {
      const { empty, end, lease, processes, stats } = yield* expired
      assert.lengthOf(processes(), 2)
      assert.deepStrictEqual([yield* end(), yield* end(id, "stateful")].map(Option.isSome), [true, false])
      yield* empty
      assert.strictEqual((yield* stats).closes.IdleTimeout, 2)
      assert.strictEqual(yield* tagOf(lease()), "UnknownSession")
    }))

  it.live("an expired session has no process any more when its id moves to another replica", () =>
    Effect.gen(function*() {
      const { processes, sessions } = yield* expired
      const started = processes()
      yield* sessions.vacate((each) => each === id, Endings.movesOn)
      assert.deepStrictEqual(started.filter(Kit.alive), [])
    }))
})

describe("deleted sessions", () => {
  it.live("a session that is deleted while a call wakes it has no process afterwards", () =>
    Effect.gen(function*() {
      const { database, empty, end, lease, stats } = yield* asleep()
      // The deletion finds it asleep, and still asks for it when the process of the next call has started.
      const found = yield* Deferred.make<void>()
      database.finding = Deferred.await(found)
      const ending = yield* fork(end())
      database.finding = Effect.void
      yield* lease()
      assert.strictEqual((yield* stats).idle, 1)
      yield* Deferred.succeed(found, undefined)
      yield* Option.getOrThrow(yield* Fiber.join(ending))
      yield* empty
      assert.strictEqual(yield* tagOf(lease()), "UnknownSession")
    }))

  it.live("a session that is deleted while its process starts has no process when its end is reported, and does not wake", () =>
    Effect.gen(function*() {
      const { empty, end, hold, launching, lease, processes, release } = yield* asleep()
      yield* hold
      const waking = yield* fork(lease())
      yield* launching
      const gone = Option.getOrThrow(yield* end())
      assert.isUndefined(waking.pollUnsafe())
      yield* release
      yield* gone
      assert.deepStrictEqual(processes(), [])
      assert.strictEqual(yield* tagOf(Fiber.join(waking)), "UnknownSession")
      yield* empty
      assert.strictEqual(yield* tagOf(lease()), "UnknownSession")
    }))
})

describe("reloads", () => {
  it.live("a reload while the process of a session starts keeps the session from the sleepers", () =>
    Effect.gen(function*() {
      const { empty, hold, launching, open, release, reload, sessions } = yield* make()
      yield* hold
      const opening = yield* fork(open())
      yield* launching
      yield* reload({ command: "false", stateless: true })
      assert.isUndefined(opening.pollUnsafe())
      yield* release
      assert.strictEqual(yield* tagOf(Fiber.join(opening)), "UnknownSession")
      yield* empty
      assert.deepStrictEqual([...yield* sessions.asleep], [])
    }))

  it.live("a reload while the record of a new session is written refuses the session, which does not sleep", () =>
    Effect.gen(function*() {
      const { database, empty, open, reload, sessions } = yield* make()
      const [writing, written] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      database.entering = Effect.andThen(Deferred.succeed(writing, undefined), Deferred.await(written))
      const opening = yield* fork(open())
      yield* Deferred.await(writing)
      yield* reload({ command: "false", stateless: true })
      yield* Deferred.succeed(written, undefined)
      assert.strictEqual(yield* tagOf(Fiber.join(opening)), "UnknownSession")
      yield* empty
      assert.deepStrictEqual([...yield* sessions.asleep], [])
    }))

  it.live("a reload after which a back end is not stateless any more forgets its sleepers", () =>
    Effect.gen(function*() {
      const { reload, sessions } = yield* asleep()
      yield* reload(Counting.backend())
      assert.deepStrictEqual([...yield* sessions.asleep], [])
    }))

  it.live("a reload that only spells an entry differently ends nothing, and new sessions are entered with the new text", () =>
    Effect.gen(function*() {
      const { entry, open, reload, state, stats } = yield* make()
      yield* open()
      assert.notInclude(state.entryTextOf(name), "300 seconds")
      assert.notInclude((yield* reload({ ...entry, requestTimeout: "300 seconds" })).changed, name)
      assert.strictEqual((yield* stats).idle, 1)
      assert.include(state.entryTextOf(name), "300 seconds")
    }))
})
