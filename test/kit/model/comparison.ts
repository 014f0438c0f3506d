/**
 * Runs a sequence of commands on a pool and on its model. After each command it compares results, sessions, counts and closes.
 *
 * A command or a time-out ends each lease, and each lookup, validation or close that hangs.
 */
import { Arbitrary, Cause, Deferred, Effect, Exit, HashMap, Option, Record, Schema, Scope } from "effect"
import type { Fiber } from "effect"
import { isDeepStrictEqual } from "node:util"
import { SessionPool } from "../../../src/index.ts"
import { Machine } from "../explorer/schedule.ts"
import type { Limit } from "../limits.ts"
import { drawn, one, several, toNumber } from "../limits.ts"
import type { Caller, Options } from "./model.ts"
import { Model } from "./model.ts"

// -----------------------------------------------------------------------------
// Random sequences
// -----------------------------------------------------------------------------

/** The group of a key is its first letter. Keys with `c` have no group. */
const keys = ["a1", "a2", "b1", "c1"] as const

/**
 * A second of the configurations, in milliseconds. Each time-out has some odd milliseconds on top, so that two timers of different kinds
 * never fall due together. A second is so long that these never change the order of events.
 */
const second = 100_000

/** The values that are drawn for each option, and their unit. */
const limits = {
  capacity: { values: [1, 2, 3, "off"], unit: 1 },
  groupCapacity: { values: [1, 2, "off"], unit: 1 },
  maxWaiting: { values: [0, 1, 2, "off", "off"], unit: 1 },
  maxErrorCount: { values: [1, 2, 3, "off"], unit: 1 },
  acquireTimeout: { values: [0, 3, 10, "off"], unit: second + 1_370 },
  lookupTimeout: { values: [2, 5, "off"], unit: second + 10_510 },
  validateTimeout: { values: [3, "off"], unit: second + 6_310 },
  closeTimeout: { values: [2, 5, "off"], unit: second + 170 },
  drainTimeout: { values: [0, 0, 4, "off"], unit: second + 4_110 },
  cleanupInterval: { values: [6, "off"], unit: second + 27_000 },
  failureTimeToLive: { values: [0, 3], unit: second },
  validateAfter: { values: [0, 0, 1, 3, "off"], unit: second },
  maxLifetime: { values: [8, "off", "off"], unit: second }
} satisfies Record<string, { readonly values: ReadonlyArray<Limit>; readonly unit: number }>
export type LimitName = keyof typeof limits

const Configuration = Schema.Struct({
  limits: drawn(Record.map(limits, ({ values }) => values)),
  idleTimeToLive: drawn<string>({ a1: [0, 5, "off"], a2: [5, 9], b1: [0, 5], c1: [5, "off"] }),
  lookups: several(one(["opens", "opens", "opens", "fails", "hangs"]), 6),
  closes: several(one(["ends", "ends", "hangs"]), 6),
  validations: several(one(["yes", "no", "hangs", "hangs"]), 6)
})

/** A command reads the fields that it needs. `n` chooses among the present callers or sessions, `how` selects a variant. */
const Command = Schema.Struct({
  kind: one([
    ...(["get", "use", "lease", "use", "release", "release", "release", "invalidate", "interrupt"] as const),
    ...(["getOption", "set", "touch", "invalidateAll", "recordError", "report", "disconnect", "sweep"] as const),
    ...(["endLookup", "endValidation", "endClose", "wait", "waitUntilDue"] as const)
  ]),
  key: one(keys),
  n: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 3 })),
  how: one(["success", "error", "harmless"])
})
type Command = typeof Command.Type

/** A configuration, the commands before the end of the pool, and those after it. */
const Sequence = Schema.Struct({
  configuration: Configuration,
  commands: Schema.Array(Command).check(Schema.isMaxLength(60)),
  afterTheEnd: Schema.Array(Command).check(Schema.isMaxLength(8))
})
type Sequence = typeof Sequence.Type

const toOptions = (configuration: Sequence["configuration"]): Options => {
  const { closes, idleTimeToLive, lookups, validations } = configuration
  return {
    ...Record.map(limits, ({ unit }, name) => toNumber(configuration.limits[name], unit)),
    // In the order of the pool's map.
    keys: [...HashMap.keys(HashMap.fromIterable(keys.map((key) => [key, key])))],
    idleTimeToLive: (key) => toNumber(idleTimeToLive[key] ?? "off", second),
    groupBy: (key) => key.startsWith("c") ? undefined : key.slice(0, 1),
    lookups: (n) => nth(lookups, n) ?? "opens",
    closes: (n) => nth(closes, n) ?? "ends",
    validations: (n) => nth(validations, n) ?? "yes"
  }
}

// -----------------------------------------------------------------------------
// The pool's side
// -----------------------------------------------------------------------------

/** A caller of the pool: its result so far, its fiber, and the gate that ends its lease. */
interface Actor {
  result: string
  readonly fiber: Fiber.Fiber<unknown, unknown>
  readonly release: Deferred.Deferred<void, "error" | "harmless">
  /** The lease that `use` and `lease` give, for commands about its session. */
  lease?: SessionPool.Lease<string, number>
}

const resultOf = Exit.match({
  onSuccess: (value: unknown) => typeof value === "string" ? value : "done",
  onFailure: (cause: Cause.Cause<unknown>) => {
    const error = Cause.squash(cause)
    if (Cause.hasInterruptsOnly(cause)) return "interrupted"
    if (error instanceof SessionPool.SessionPoolError) return error.reason._tag
    return error === "error" || error === "harmless" ? "done" : String(error)
  }
})

/** Makes the pool, on a back end that follows the options. */
const start = (machine: Machine, options: Options) => {
  const opened: Array<number> = []
  const closed: Array<number> = []
  const actors: Array<Actor> = []
  let validated = 0
  const gates = new Map<string, Deferred.Deferred<boolean>>()
  /** Waits until `answer` is called with the same name. */
  const hang = (what: string) =>
    Effect.suspend(() => {
      const gate = Deferred.makeUnsafe<boolean>()
      gates.set(what, gate)
      return Deferred.await(gate)
    })
  const answer = (what: string, is: boolean) =>
    Effect.sync(() => {
      const gate = gates.get(what)
      if (gate !== undefined) Deferred.doneUnsafe(gate, Effect.succeed(is))
    })
  const open = () => opened.push(opened.length + 1)
  const close = (n: number) =>
    Effect.andThen(options.closes(n) === "hangs" ? hang(`close ${n}`) : Effect.void, Effect.sync(() => closed.push(n)))
  const scope = Scope.makeUnsafe()
  const made = SessionPool.make({
    ...options,
    lookup: Effect.fnUntraced(function*(_key: string) {
      const n = yield* Effect.acquireRelease(Effect.sync(open), close)
      const what = options.lookups(n)
      const opens = what === "hangs" ? yield* hang(`lookup ${n}`) : what === "opens"
      return opens ? n : yield* Effect.fail("Broken")
    }),
    isError: (cause) => Cause.squash(cause) !== "harmless",
    validate: (n: number) =>
      Effect.suspend(() => {
        const says = options.validations(++validated)
        return says === "hangs" ? hang(`validation ${n}`) : Effect.succeed(says === "yes")
      }),
    closed: (n: number) => hang(`death ${n}`)
  })
  const pool = machine.result(Scope.provide(made, scope))
  const call = ({ key, kind }: Caller) => {
    const release = Deferred.makeUnsafe<void, "error" | "harmless">()
    const hold = (n: number, lease?: SessionPool.Lease<string, number>) =>
      Effect.suspend(() => {
        Object.assign(actor, { result: `has ${n}`, lease })
        return Deferred.await(release)
      })
    const n = kind === "set" ? open() : 0
    const calls: Record<Caller["kind"], Effect.Effect<unknown, unknown, Scope.Scope>> = {
      get: Effect.flatMap(SessionPool.get(pool, key), hold),
      use: SessionPool.use(pool, key, hold),
      lease: Effect.flatMap(SessionPool.lease(pool, key), (lease) => hold(lease.value, lease)),
      getOption: Effect.flatMap(
        SessionPool.getOption(pool, key),
        Option.match({ onNone: () => Effect.succeed("None"), onSome: hold })
      ),
      set: Effect.as(SessionPool.set(pool, key, n, close(n)), "set")
    }
    // The fiber yields first, so `actor` is initialised when it runs.
    const fiber = machine.fork(Effect.andThen(Effect.yieldNow, Effect.scoped(calls[kind])))
    const actor: Actor = { result: "waits", fiber, release }
    actors.push(actor)
    fiber.addObserver((exit) => {
      actor.result = resultOf(exit)
    })
  }
  return { pool, scope, actors, opened, closed, answer, call }
}

// -----------------------------------------------------------------------------
// Both sides
// -----------------------------------------------------------------------------

const nth = <A>(list: Iterable<A>, n: number): A | undefined => {
  const all = [...list]
  return all[n % Math.max(all.length, 1)]
}

/** The moments at which something falls due, in order. */
const deadlines = (model: Model): Array<number> => {
  const { failures, now, options, timers } = model
  const lives = model.those("live").flatMap((s) => [
    s.expiresAt,
    s.lastUsedAt + options.idleTimeToLive(s.key),
    Math.max(s.lastUsedAt, s.validatedAt) + options.validateAfter
  ])
  const all = [...lives, ...timers.map(({ at }) => at), ...[...failures.values()].map(({ until }) => until)]
  return [...new Set(all)].filter((at) => at > now && at < Infinity).toSorted((x, y) => x - y)
}

const inOrder = (numbers: ReadonlyArray<number>) => numbers.toSorted((x, y) => x - y)

/** Runs a sequence. Throws when the pool differs from its model. */
export const compare = ({ afterTheEnd, commands, configuration }: Sequence): void => {
  const machine = new Machine()
  const options = toOptions(configuration)
  const { actors, answer, call, closed, opened, pool, scope } = start(machine, options)
  // The machine always draws 0.5, half of the random tenth.
  const model = new Model({ ...options, maxLifetime: options.maxLifetime * 0.95 })
  const callers: Array<Caller> = []
  /** The connection of each id. An id is never given to another session. */
  const ids = new Map<number, number | undefined>()
  let ended = false
  let after = "at the start"

  /** Throws with the parts that differ. */
  const expectEqual = <A extends object>(actual: A, expected: A): void => {
    const different: Array<string> = []
    for (const part in expected) {
      if (isDeepStrictEqual(actual[part], expected[part])) continue
      different.push(`${part}: pool ${JSON.stringify(actual[part])}`, `model ${JSON.stringify(expected[part])}`)
    }
    if (different.length > 0) throw new Error([after, ...different].join("\n  "))
  }
  const check = (): void => {
    const present = model.those("live").filter((s) => model.overdue(s) === undefined)
    const entries = machine.result(SessionPool.entries(pool))
    const stats = machine.result(SessionPool.stats(pool))
    for (const { id, key } of entries) {
      if (!ids.has(id)) ids.set(id, model.live(key)?.connection)
    }
    expectEqual(
      {
        callers: actors.map(({ result }) => result),
        sessions: Record.fromIterableWith(entries, ({ key, ...info }) => [key, { ...info, id: ids.get(info.id) }]),
        stats: { ...stats, closes: Record.filter(stats.closes, (count) => count > 0) },
        opened: opened.length,
        closed: inOrder(closed),
        ended
      },
      {
        callers: callers.map(({ result }) => result),
        sessions: Record.fromIterableWith(present, (s) => [s.key, model.info(s)]),
        stats: model.stats(),
        opened: model.opened,
        closed: inOrder(model.closed),
        ended: model.ended
      }
    )
  }
  const advance = (to: number) => {
    machine.advance(to)
    model.advance(to)
  }
  /** Runs a command on both sides. If the model returns a result, the pool must return the same. */
  const both = (effect: Effect.Effect<unknown>, expected: () => unknown) => {
    const actual = machine.result(effect)
    const result = model.run(expected)
    if (result !== undefined) expectEqual({ result: actual }, { result })
  }
  const begin = (kind: Caller["kind"]) => ({ key }: Command) => {
    const caller: Caller = { kind, key, ticket: callers.length, result: "waits" }
    callers.push(caller)
    both(Effect.sync(() => call(caller)), () => kind === "set" ? model.set(caller) : model.acquire(caller))
  }
  /** The n-th caller that is in one of these states, with its fiber. */
  const chosen = (n: number, state: RegExp, f: (caller: Caller, actor: Actor) => void) => {
    const caller = nth(callers.filter(({ result }) => state.test(result)), n)
    const actor = caller && actors[callers.indexOf(caller)]
    if (caller !== undefined && actor !== undefined) f(caller, actor)
  }
  const checks = () => model.sessions.filter(({ checking }) => checking !== undefined)
  const when = <A>(value: A | undefined, f: (value: A) => void) => value !== undefined && f(value)

  const handlers: Record<Command["kind"], (command: Command) => unknown> = {
    get: begin("get"),
    use: begin("use"),
    lease: begin("lease"),
    getOption: begin("getOption"),
    set: begin("set"),
    touch: ({ key }) => both(Effect.map(SessionPool.touch(pool, key), Option.getOrNull), () => model.touch(key)),
    invalidate: ({ key }) => both(SessionPool.invalidate(pool, key), () => model.invalidate(key)),
    invalidateAll: ({ how }) => {
      const predicate = how === "success" ? undefined : ({ state }: SessionPool.Info<string>) => state === "idle"
      both(SessionPool.invalidateAll(pool, predicate), () => model.invalidateAll(predicate && "idle"))
    },
    recordError: ({ key }) => both(SessionPool.recordError(pool, key), () => model.recordError(model.live(key))),
    report: ({ how, n }) =>
      chosen(n, /^has/, ({ session }, { lease }) => {
        if (session === undefined || lease === undefined) return
        if (how === "error") both(lease.recordError, () => model.recordError(session))
        else both(lease.invalidate, () => session.current && model.invalidate(session.key))
      }),
    sweep: () => both(SessionPool.sweep(pool), () => model.sweep()),
    release: ({ how, n }) =>
      chosen(n, /^has/, (caller, actor) => {
        caller.result = "done"
        both(
          Effect.sync(() => Deferred.doneUnsafe(actor.release, how === "success" ? Effect.void : Effect.fail(how))),
          () => model.release(caller, caller.kind !== "use" || how === "harmless" ? "neither" : how)
        )
      }),
    interrupt: ({ n }) =>
      chosen(n, /^(has|waits)/, (caller, { fiber }) => {
        both(Effect.sync(() => fiber.interruptUnsafe()), () => model.leave(caller, "interrupted"))
      }),
    disconnect: ({ key }) =>
      when(model.live(key), (s) => both(answer(`death ${s.connection}`, true), () => model.retire(s, "Disconnected"))),
    endLookup: ({ how, n }) =>
      when(nth(model.those("launching"), n), (s) => {
        const opens = how === "success"
        both(answer(`lookup ${s.connection}`, opens), () => model.launched(s, opens ? undefined : "Broken"))
      }),
    endValidation: ({ how, n }) =>
      when(nth(checks(), n), (s) => {
        const valid = how === "success"
        both(answer(`validation ${s.connection}`, valid), () => model.checked(s, valid))
      }),
    endClose: ({ n }) =>
      when(nth(model.hanging.keys(), n), (n) => both(answer(`close ${n}`, true), () => model.closeEnds(n))),
    wait: ({ n }) => advance(model.now + (nth([1, 2, 4, 12], n) ?? 0) * second),
    // At the deadline, or a millisecond later.
    waitUntilDue: ({ how, n }) => when(nth(deadlines(model), n), (at) => advance(how === "success" ? at : at + 1))
  }
  let atOnce = false
  const run = (commands: ReadonlyArray<Command>) => {
    for (const command of commands) {
      // Each command has its own moment, except after `waitUntilDue`.
      if (!atOnce) advance(model.now + 1)
      atOnce = command.kind === "waitUntilDue"
      after = `after ${JSON.stringify(command)} at ${model.now} ms`
      handlers[command.kind](command)
      check()
    }
  }
  const repeated = (list: Iterable<unknown>, kind: Command["kind"]) =>
    run([...list].map(() => ({ kind, key: "a1", n: 0, how: "success" })))

  run(commands)
  after = "after the end"
  machine.fork(Scope.close(scope, Exit.void)).addObserver(() => {
    ended = true
  })
  machine.settle()
  model.run(() => model.end())
  check()
  run(afterTheEnd)
  // Interrupts all callers, and ends all checks and closes that hang.
  repeated(callers, "interrupt")
  repeated(checks(), "endValidation")
  repeated(model.hanging, "endClose")
  advance(model.now + 60 * second)
  repeated(model.hanging, "endClose")
  const left = actors.filter(({ result }) => /^(has|waits)/.test(result))
  expectEqual({ ended, left, closed: inOrder(closed) }, { ended: true, left: [], closed: opened })
}

/** Compares random sequences. The failure has the shortest one found for which pool and model differ. `onRun` is called before each. */
export const explore = (runs: number, seed: number, onRun: () => void = () => {}) => {
  let commands = 0
  const agree = (sequence: Sequence) => {
    onRun()
    commands += sequence.commands.length + sequence.afterTheEnd.length
    return Effect.try({ try: () => compare(sequence), catch: String }).pipe(Effect.as(true))
  }
  const options = { runs, seed, size: 200, maxShrinks: 2_000 }
  return Effect.map(Arbitrary.checkEffect(Arbitrary.schema(Sequence), agree, options), (result) => ({
    commands,
    failure: Arbitrary.formatCheckFailure(result)
  }))
}
