/**
 * Runs a sequence of commands on a pool and on its model, and compares after each: results, sessions, counts, closes.
 *
 * Each lease is held, and what takes time (lookups, validations, closes) goes on, until a command or a time-out of the pool ends it.
 */
import {
  Arbitrary,
  Cause,
  Deferred,
  Effect,
  Exit,
  Fiber,
  HashMap,
  Logger,
  Option,
  Random,
  Scheduler,
  Schema,
  Scope
} from "effect"
import { TestClock } from "effect/testing"
import { isDeepStrictEqual } from "node:util"
import { SessionPool } from "../../../src/index.ts"
import type { Caller, Options } from "./model.ts"
import { Model } from "./model.ts"

// -----------------------------------------------------------------------------
// What is generated
// -----------------------------------------------------------------------------

const names = ["a1", "a2", "b1", "b2"] as const
/** In the order of the pool's map. */
const keys = [...HashMap.keys(HashMap.fromIterable(names.map((name) => [name, name])))]
const Key = Schema.Literals(names)
const Index = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 3 }))
const some = <S extends Schema.Constraint>(schema: S) =>
  Schema.Array(schema).check(Schema.isMinLength(1), Schema.isMaxLength(6))
const one = Schema.Literals

/** Times in seconds. What is `off` is infinity. */
const Configuration = Schema.Struct({
  capacity: one([1, 2, 3, "off"]),
  groupCapacity: one([1, 2, "off"]),
  maxWaiting: one([0, 1, 2, "off", "off"]),
  maxErrorCount: one([1, 2, 3, "off"]),
  acquireTimeout: one([0, 3, 10, "off"]),
  lookupTimeout: one([2, 5, "off"]),
  closeTimeout: one([2, 5, "off"]),
  drainTimeout: one([0, 0, 4, "off"]),
  failureTimeToLive: one([0, 3]),
  validateAfter: one([0, 0, 1, 3, "off"]),
  maxLifetime: one([8, "off", "off"]),
  cleanupInterval: one([6, "off"]),
  idleTimeToLive: Schema.Struct({ a1: one([0, 5, "off"]), a2: one([5, 9]), b1: one([0, 5]), b2: one([5, "off"]) }),
  lookups: some(one(["opens", "opens", "opens", "fails", "hangs"])),
  closes: some(one(["ends", "ends", "hangs"])),
  validations: some(one(["yes", "no", "hangs", "hangs"]))
})

const How = one(["success", "error", "harmless"])

const commands = {
  get: Schema.Struct({ get: Key }),
  use: Schema.Struct({ use: Key }),
  getOption: Schema.Struct({ getOption: Key }),
  set: Schema.Struct({ set: Key }),
  release: Schema.Struct({ release: Index, how: How }),
  interrupt: Schema.Struct({ interrupt: Index }),
  touch: Schema.Struct({ touch: Key }),
  invalidate: Schema.Struct({ invalidate: Key }),
  invalidateAll: Schema.Struct({ invalidateAll: one(["every", "idle"]) }),
  recordError: Schema.Struct({ recordError: Key }),
  disconnect: Schema.Struct({ disconnect: Key }),
  sweep: Schema.Struct({ sweep: one([true]) }),
  lookup: Schema.Struct({ lookup: Index, ends: one(["opens", "fails"]) }),
  validation: Schema.Struct({ validation: Index, says: Schema.Boolean }),
  close: Schema.Struct({ closeEnds: Index }),
  seconds: Schema.Struct({ seconds: one([1, 2, 4, 12]) }),
  /** Waits until the n-th moment from now at which something falls due, or just past it. */
  until: Schema.Struct({ until: Index, past: one([0, 1]) })
}
const { get, interrupt, invalidate, invalidateAll, release, use, ...others } = commands
const Command = Schema.Union([
  get,
  use,
  get,
  use,
  release,
  release,
  release,
  invalidate,
  interrupt,
  invalidateAll,
  ...Object.values(others)
])
type Command = typeof Command.Type

/** A configuration, the commands before the end of the pool, and those after it. */
export const Sequence = Arbitrary.schema(Schema.Struct({
  configuration: Configuration,
  commands: Schema.Array(Command).check(Schema.isMaxLength(60)),
  afterTheEnd: Schema.Array(Command).check(Schema.isMaxLength(8))
}))
type Sequence = typeof Sequence extends Arbitrary.Arbitrary<infer A> ? A : never

/**
 * What a configuration calls a second, in milliseconds: so long that odd milliseconds on top make no difference to the
 * order of things, but keep two timers of different kinds from falling due in the same moment.
 */
const second = 1_000_000
const toOptions = (configuration: Sequence["configuration"]): Options => {
  const nth = <A>(list: ReadonlyArray<A>) => (n: number) => list[(n - 1) % list.length] as A // at least one
  const times = (value: number | "off", unit: number) => value === "off" ? Infinity : value * unit
  const { closes, idleTimeToLive, lookups, validations } = configuration
  return {
    keys,
    capacity: times(configuration.capacity, 1),
    groupCapacity: times(configuration.groupCapacity, 1),
    maxWaiting: times(configuration.maxWaiting, 1),
    maxErrorCount: times(configuration.maxErrorCount, 1),
    acquireTimeout: times(configuration.acquireTimeout, second + 1_370),
    lookupTimeout: times(configuration.lookupTimeout, second + 10_510),
    closeTimeout: times(configuration.closeTimeout, second + 170),
    drainTimeout: times(configuration.drainTimeout, second + 4_110),
    cleanupInterval: times(configuration.cleanupInterval, second + 27_000),
    failureTimeToLive: times(configuration.failureTimeToLive, second),
    validateAfter: times(configuration.validateAfter, second),
    maxLifetime: times(configuration.maxLifetime, second),
    idleTimeToLive: (key) => times(idleTimeToLive[key as typeof names[number]], second),
    groupBy: (key) => key.slice(0, 1),
    lookups: nth(lookups),
    closes: nth(closes),
    validations: nth(validations)
  }
}

// -----------------------------------------------------------------------------
// The pool's side
// -----------------------------------------------------------------------------

class Broken extends Schema.TaggedError<Broken>()("Broken", {}) {}

/** A caller of the pool: its fiber, what became of it so far, and how it is told to end its lease. */
interface Actor {
  result: string
  readonly fiber: Fiber.Fiber<unknown, unknown>
  readonly release: Deferred.Deferred<void, "error" | "harmless">
}

const gates = <A, E = never>() => {
  const all = new Map<number, Deferred.Deferred<A, E>>()
  return {
    wait: (n: number) =>
      Effect.suspend(() => {
        const gate = Deferred.makeUnsafe<A, E>()
        all.set(n, gate)
        return Deferred.await(gate)
      }),
    open: (n: number, effect: Effect.Effect<A, E>) => {
      const gate = all.get(n)
      if (gate !== undefined) Deferred.doneUnsafe(gate, effect)
    }
  }
}

/** The pool, with a back end that does what the options say. */
const start = Effect.fnUntraced(function*(options: Options) {
  const opened: Array<number> = []
  const closed: Array<number> = []
  const lookups = gates<void, Broken>()
  const closes = gates<void>()
  const validations = gates<boolean>()
  const deaths = gates<void>()
  const actors: Array<Actor> = []
  let validated = 0
  const open = () => opened.push(opened.length + 1)
  const close = (n: number) =>
    Effect.andThen(options.closes(n) === "hangs" ? closes.wait(n) : Effect.void, Effect.sync(() => closed.push(n)))
  const scope = yield* Scope.make()
  const pool = yield* SessionPool.make({
    ...options,
    lookup: Effect.fnUntraced(function*(_key: string) {
      const n = yield* Effect.acquireRelease(Effect.sync(open), close)
      const what = options.lookups(n)
      if (what === "hangs") yield* lookups.wait(n)
      if (what === "fails") yield* new Broken()
      return n
    }),
    isError: (cause) => !Cause.squash(cause) || Cause.squash(cause) !== "harmless",
    validate: (n: number) =>
      Effect.suspend(() => {
        const says = options.validations(++validated)
        return says === "hangs" ? validations.wait(n) : Effect.succeed(says === "yes")
      }),
    closed: (n: number) => deaths.wait(n)
  }).pipe(Scope.provide(scope))
  const call = Effect.fnUntraced(function*(kind: Caller["kind"], key: string) {
    const release = Deferred.makeUnsafe<void, "error" | "harmless">()
    const hold = (n: number) =>
      Effect.suspend(() => {
        actor.result = `has ${n}`
        return Deferred.await(release)
      })
    const n = kind === "set" ? open() : 0
    const effects: Record<Caller["kind"], Effect.Effect<unknown, unknown>> = {
      get: Effect.scoped(Effect.flatMap(SessionPool.get(pool, key), hold)),
      use: SessionPool.use(pool, key, hold),
      getOption: Effect.scoped(Effect.flatMap(
        SessionPool.getOption(pool, key),
        Option.match({ onNone: () => Effect.succeed("None"), onSome: hold })
      )),
      set: Effect.as(SessionPool.set(pool, key, n, close(n)), "set")
    }
    const fiber = yield* Effect.forkDetach(Effect.suspend(() => effects[kind]))
    const actor: Actor = { result: "waits", fiber, release }
    actors.push(actor)
    fiber.addObserver((exit) => {
      actor.result = Exit.match(exit, {
        onSuccess: (value) => typeof value === "string" ? value : "done",
        onFailure: (cause) => {
          if (Cause.hasInterruptsOnly(cause)) return "interrupted"
          const error = Cause.squash(cause)
          return typeof error === "string" ? "done" : error instanceof Error ? error.name : String(error)
        }
      })
    })
  })
  return { pool, scope, actors, opened, closed, lookups, closes, validations, deaths, call }
})

type Side = Effect.Success<ReturnType<typeof start>>

// -----------------------------------------------------------------------------
// Both
// -----------------------------------------------------------------------------

const nth = <A>(list: Iterable<A>, n: number): A | undefined => {
  const all = [...list]
  return all[n % Math.max(all.length, 1)]
}

/** The moments at which something falls due, in order. */
const deadlines = ({ failures, now, options, sessions, timers }: Model): Array<number> => {
  const lives = sessions.filter(({ state }) => state === "live").flatMap((s) => [
    s.expiresAt,
    s.lastUsedAt + options.idleTimeToLive(s.key),
    Math.max(s.lastUsedAt, s.validatedAt) + options.validateAfter
  ])
  const all = [...lives, ...timers.map(({ at }) => at), ...[...failures.values()].map(({ until }) => until)]
  return [...new Set(all)].filter((at) => at > now && at < Infinity).toSorted((x, y) => x - y)
}

const advance = (model: Model, to: number) => {
  const millis = to - model.now
  model.advance(to)
  return TestClock.adjust(millis)
}

/** Carries a command out on both sides; what each of them returned. Long: a case for each command. */
const carryOut = Effect.fnUntraced(function*(command: Command, side: Side, model: Model, callers: Array<Caller>) {
  const { pool } = side
  const both = <A>(effect: Effect.Effect<A>, expected: () => unknown) =>
    Effect.map(effect, (actual) => [actual, model.run(expected)] as const)
  const call = (kind: Caller["kind"], key: string) => {
    const caller: Caller = { kind, key, result: "waits" }
    callers.push(caller)
    return both(side.call(kind, key), () => kind === "set" ? model.set(caller) : model.acquire(caller))
  }
  if ("get" in command) return yield* call("get", command.get)
  if ("use" in command) return yield* call("use", command.use)
  if ("getOption" in command) return yield* call("getOption", command.getOption)
  if ("set" in command) return yield* call("set", command.set)
  if ("touch" in command) {
    return yield* both(
      Effect.map(SessionPool.touch(pool, command.touch), Option.getOrUndefined),
      () => model.touch(command.touch)
    )
  }
  if ("invalidate" in command) {
    return yield* both(SessionPool.invalidate(pool, command.invalidate), () => model.invalidate(command.invalidate))
  }
  if ("invalidateAll" in command) {
    const idle = command.invalidateAll === "idle"
    return yield* both(
      idle ? SessionPool.invalidateAll(pool, ({ state }) => state === "idle") : SessionPool.invalidateAll(pool),
      () => model.invalidateAll(command.invalidateAll)
    )
  }
  if ("recordError" in command) {
    return yield* both(SessionPool.recordError(pool, command.recordError), () => {
      const s = model.live(command.recordError)
      if (s !== undefined) model.error(s)
    })
  }
  if ("sweep" in command) return yield* both(SessionPool.sweep(pool), () => model.sweep())
  if ("release" in command) {
    const caller = nth(callers.filter(({ result }) => result.startsWith("has")), command.release)
    const actor = caller && side.actors[callers.indexOf(caller)]
    if (caller === undefined || actor === undefined) return [] as const
    const { how } = command
    caller.result = "done"
    return yield* both(
      Effect.sync(() => Deferred.doneUnsafe(actor.release, how === "success" ? Effect.void : Effect.fail(how))),
      () => {
        model.release(caller, caller.kind !== "use" || how === "harmless" ? "neither" : how)
        return true
      }
    )
  }
  if ("interrupt" in command) {
    const caller = nth(callers.filter(({ result }) => /^(has|waits)/.test(result)), command.interrupt)
    const actor = caller && side.actors[callers.indexOf(caller)]
    if (caller === undefined || actor === undefined) return [] as const
    return yield* both(Effect.asVoid(Fiber.interrupt(actor.fiber)), () => model.leave(caller, "interrupted"))
  }
  if ("disconnect" in command) {
    const s = model.live(command.disconnect)
    if (s === undefined) return [] as const
    return yield* both(
      Effect.sync(() => side.deaths.open(s.connection, Effect.void)),
      () => model.retire(s, "Disconnected")
    )
  }
  if ("lookup" in command) {
    const s = nth(model.sessions.filter(({ state }) => state === "launching"), command.lookup)
    if (s === undefined) return [] as const
    const opens = command.ends === "opens"
    return yield* both(
      Effect.sync(() => side.lookups.open(s.connection, opens ? Effect.void : new Broken())),
      () => model.launched(s, opens ? undefined : "Broken")
    )
  }
  if ("validation" in command) {
    const s = nth(model.checks, command.validation)
    if (s === undefined) return [] as const
    return yield* both(
      Effect.sync(() => side.validations.open(s.connection, Effect.succeed(command.says))),
      () => model.checked(s, command.says)
    )
  }
  if ("closeEnds" in command) {
    const hanging = nth(model.hanging.keys(), command.closeEnds)
    if (hanging === undefined) return [] as const
    return yield* both(
      Effect.sync(() => side.closes.open(hanging, Effect.void)),
      () => model.closeEnds(hanging)
    )
  }
  if ("seconds" in command) yield* advance(model, model.now + command.seconds * second)
  if ("until" in command) {
    const at = nth(deadlines(model), command.until)
    if (at !== undefined) yield* advance(model, at + command.past)
  }
  return [] as const
})

/** A scheduler that knows when nothing more happens in this moment. On microtasks, as nothing here waits for the outside. */
const makeScheduler = () => {
  let pending = 0
  const inner = new Scheduler.MixedScheduler("async", (run) => {
    queueMicrotask(run)
    return () => {}
  })
  const scheduler: Scheduler.Scheduler = {
    executionMode: "async",
    shouldYield: (fiber) => inner.shouldYield(fiber),
    makeDispatcher: () => {
      const dispatcher = inner.makeDispatcher()
      return {
        scheduleTask: (task, priority) => {
          pending++
          dispatcher.scheduleTask(() => {
            pending--
            task()
          }, priority)
        },
        flush: () => dispatcher.flush()
      }
    }
  }
  const quiet = Effect.whileLoop({ while: () => pending > 0, body: () => Effect.yieldNow, step: () => {} })
  return { scheduler, quiet: Effect.andThen(Effect.yieldNow, quiet) }
}

const ofModel = (model: Model, callers: ReadonlyArray<Caller>): Record<string, unknown> => {
  const live = model.sessions.filter(({ state }) => state === "live")
  const active = live.filter((s) => model.leases(s) > 0).length
  const launching = model.sessions.filter(({ current, state }) => current && state === "launching").length
  const waiting = model.sessions.filter(({ state }) => state === "waiting").length
  return {
    callers: callers.map(({ key, kind, result }) => `${kind} ${key} ${result}`),
    sessions: Object.fromEntries(live.map((s) => [s.key, {
      createdAt: s.createdAt,
      openedAt: s.openedAt,
      lastUsedAt: s.lastUsedAt,
      requestCount: s.requests,
      errorCount: s.errors,
      leases: model.leases(s),
      state: model.leases(s) > 0 ? "active" : "idle"
    }])),
    stats: {
      ...model.totals,
      closes: model.closes,
      launching,
      idle: live.length - active,
      active,
      retired: model.sessions.length - live.length - launching - waiting,
      waiting: model.waiting()
    },
    opened: model.opened,
    closed: model.closed.toSorted((x, y) => x - y),
    ended: model.ended
  }
}

const ofPool = Effect.fnUntraced(function*(side: Side, callers: ReadonlyArray<Caller>, ended: boolean) {
  const { closes, ...stats } = yield* SessionPool.stats(side.pool)
  return {
    callers: side.actors.map(({ result }, i) => `${callers[i]?.kind} ${callers[i]?.key} ${result}`),
    sessions: Object.fromEntries(
      (yield* SessionPool.entries(side.pool)).map(({ id: _, key, ...info }) => [key, info])
    ),
    stats: { ...stats, closes: Object.fromEntries(Object.entries(closes).filter(([, count]) => count > 0)) },
    opened: side.opened.length,
    closed: side.closed.toSorted((x, y) => x - y),
    ended
  }
})

/** Fails with those parts that are not equal. */
const differ = (after: string, pool: Record<string, unknown>, model: Record<string, unknown>): void => {
  const parts = Object.keys(model).filter((part) => !isDeepStrictEqual(pool[part], model[part]))
  const lines = parts.map((part) =>
    `\n  ${part} of the pool:  ${JSON.stringify(pool[part])}\n  ${part} of the model: ${JSON.stringify(model[part])}`
  )
  if (parts.length > 0) throw new Error(after + lines.join(""))
}

/** Fails where the pool differs from its model. */
export const compare = Effect.fnUntraced(function*({ afterTheEnd, commands, configuration }: Sequence) {
  const { quiet, scheduler } = makeScheduler()
  const test = Effect.gen(function*() {
    const options = toOptions(configuration)
    const side = yield* start(options)
    const model = new Model({ ...options, maxLifetime: options.maxLifetime * (1 - random / 10) })
    const callers: Array<Caller> = []
    /** Which connection had which id. */
    const ids = new Map<number, number | undefined>()
    let ended = false
    let exactly = false
    const check = Effect.fnUntraced(function*(after: string) {
      yield* quiet
      differ(after, yield* ofPool(side, callers, ended), ofModel(model, callers))
      // An id is never given to another session.
      for (const { id, key } of yield* SessionPool.entries(side.pool)) {
        const connection = model.live(key)?.connection
        differ(after, { id, connection: ids.get(id) ?? connection }, { id, connection })
        ids.set(id, connection)
      }
    })
    const run = Effect.fnUntraced(function*(commands: ReadonlyArray<Command>) {
      for (const command of commands) {
        // Each command has a moment of its own, but for one that follows `until`.
        if (!exactly) yield* advance(model, model.now + 1)
        exactly = "until" in command
        const [actual, expected] = yield* carryOut(command, side, model, callers)
        const after = `after ${JSON.stringify(command)} at ${model.now} ms`
        differ(after, { result: actual }, { result: expected })
        yield* check(after)
      }
    })
    yield* run(commands)
    const ending = yield* Effect.forkDetach(Scope.close(side.scope, Exit.void))
    ending.addObserver(() => {
      ended = true
    })
    model.run(() => model.end())
    yield* check("after the end")
    yield* run(afterTheEnd)
    // Whoever is left goes, and whatever hangs ends.
    yield* run(callers.map(() => ({ interrupt: 0 })))
    yield* run([...model.checks].map(() => ({ validation: 0, says: true })))
    yield* run([...model.hanging].map(() => ({ closeEnds: 0 })))
    yield* advance(model, model.now + 60 * second)
    yield* run([...model.hanging].map(() => ({ closeEnds: 0 })))
    const left = side.actors.filter(({ result }) => /^(has|waits)/.test(result))
    const closed = side.closed.toSorted((x, y) => x - y)
    differ("in the end", { ended, left, closed }, { ended: true, left: [], closed: side.opened })
  })
  yield* test.pipe(
    Effect.scoped,
    Effect.provide(TestClock.layer()),
    Effect.provideService(Scheduler.Scheduler, scheduler),
    Effect.provideService(Random.Random, { nextDoubleUnsafe: () => random, nextIntUnsafe: () => 0 }),
    Effect.provide(Logger.layer([]))
  )
})

/** What the jitter of `maxLifetime` draws. */
const random = 0.5
