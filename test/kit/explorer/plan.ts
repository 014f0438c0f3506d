/**
 * A plan is what the fibers of one run do to one pool: plain data, made from a seed, that can be run under any schedule
 * and shrunk. `run` says which promise was broken.
 */
import { Cause, Effect, Exit, Fiber, Option, Scope, Stream } from "effect"
import { SessionPool } from "../../../src/index.ts"
import type * as Random from "../random.ts"
import type { Chooser, Verdict } from "./schedule.ts"
import { Machine } from "./schedule.ts"
import type { Connection } from "./watch.ts"
import { Watch } from "./watch.ts"

/** What one run of the lookup does. */
export interface Lookup {
  readonly takes: Pause
  readonly ends: "opens" | "fails" | "dies" | "hangs"
  readonly closing: Pause | "fails"
  /** What `validate` says of its connection, each time. */
  readonly valid: boolean
  /** The connection dies by itself after so many milliseconds. */
  readonly livesFor: number
}

/** Nothing, a yield, or milliseconds. */
export type Pause = "none" | "yield" | number

export interface Operation {
  readonly kind:
    | "get"
    | "use"
    | "getOption"
    | "touch"
    | "set"
    | "invalidate"
    | "invalidateAll"
    | "recordError"
    | "sweep"
    | "pause"
  readonly key: string
  /** How long the caller keeps what it got. */
  readonly holds: Pause
  /** `use` ends with a failure. */
  readonly fails: boolean
  /** Runs in a fiber that is interrupted at once: the schedule says how far it gets. */
  readonly interrupted: boolean
}

export interface Options {
  readonly capacity: number
  readonly groupCapacity: number
  readonly idleTimeToLive: number
  readonly cleanupInterval: number
  readonly maxErrorCount: number
  readonly maxLifetime: number
  readonly acquireTimeout: number
  readonly maxWaiting: number
  readonly lookupTimeout: number
  readonly failureTimeToLive: number
  readonly validateAfter: number
  readonly keepAlive: number
  readonly closeTimeout: number
  readonly drainTimeout: number
}

export interface Plan {
  readonly options: Options
  /** One launch after another takes the next; after the last one, the first. */
  readonly lookups: ReadonlyArray<Lookup>
  readonly fibers: ReadonlyArray<ReadonlyArray<Operation>>
  /** The pool's scope closes while the fibers run, instead of after them. */
  readonly endsEarly: boolean
  /** Somebody reads the events of the pool, slowly, from before the first to the end. */
  readonly isRead: boolean
}

export const plainOptions: Options = {
  capacity: Infinity,
  groupCapacity: Infinity,
  idleTimeToLive: Infinity,
  cleanupInterval: 1000,
  maxErrorCount: Infinity,
  maxLifetime: Infinity,
  acquireTimeout: Infinity,
  maxWaiting: Infinity,
  lookupTimeout: Infinity,
  failureTimeToLive: 0,
  validateAfter: Infinity,
  keepAlive: Infinity,
  closeTimeout: Infinity,
  drainTimeout: 0
}

export const plainLookup: Lookup = { takes: "yield", ends: "opens", closing: "none", valid: true, livesFor: Infinity }

export const operation = (
  kind: Operation["kind"],
  key = "a1",
  rest: Partial<Operation> = {}
): Operation => ({ kind, key, holds: "yield", fails: false, interrupted: false, ...rest })

// -----------------------------------------------------------------------------
// Random plans
// -----------------------------------------------------------------------------

/** The group of a key is its first letter. */
const keys = ["a1", "a2", "b1", "b2"] as const

/** Eight fibers with mixed operations on a pool of small capacity. */
export const random = (random: Random.Random): Plan => {
  const sometimes = <T>(usual: T, ...others: readonly [T, ...ReadonlyArray<T>]): T =>
    random.chance(0.6) ? usual : random.pick(others)
  const operations = () =>
    Array.from({ length: 1 + random.below(2) }, (): Operation => ({
      kind: random.pick([
        ...(["get", "get", "use", "use", "use", "getOption", "touch", "set"] as const),
        ...(["invalidate", "invalidateAll", "recordError", "sweep", "pause"] as const)
      ]),
      key: random.pick(keys),
      holds: sometimes<Pause>("yield", "none", 3, 12, 25),
      fails: random.chance(0.3),
      interrupted: random.chance(0.2)
    }))
  const lookup = (): Lookup => ({
    takes: sometimes<Pause>("yield", "none", 3, 8),
    ends: sometimes<Lookup["ends"]>("opens", "opens", "opens", "fails", "dies", "hangs"),
    closing: sometimes<Lookup["closing"]>("none", "yield", 3, 15, "fails"),
    valid: random.chance(0.8),
    livesFor: sometimes(Infinity, 1, 10)
  })
  return {
    options: {
      capacity: sometimes(2, 1, 3, Infinity),
      groupCapacity: sometimes(Infinity, 1, 2),
      idleTimeToLive: sometimes(10, 0, Infinity),
      cleanupInterval: 10,
      maxErrorCount: sometimes(2, 1, Infinity),
      maxLifetime: sometimes(Infinity, 5),
      acquireTimeout: sometimes(Infinity, 0, 5),
      maxWaiting: sometimes(Infinity, 0, 2),
      // What hangs must end some time.
      lookupTimeout: 20,
      failureTimeToLive: sometimes(0, 15),
      validateAfter: sometimes(Infinity, 0, 5),
      keepAlive: sometimes(Infinity, 7),
      closeTimeout: sometimes(Infinity, 10),
      drainTimeout: sometimes(0, 5, Infinity)
    },
    lookups: Array.from({ length: 1 + random.below(4) }, lookup),
    fibers: Array.from({ length: 8 }, operations),
    endsEarly: random.chance(0.3),
    isRead: random.chance(0.3)
  }
}

/** The plans that are plainer than this one in one respect, for shrinking. */
export const plainer = (plan: Plan): ReadonlyArray<Plan> => {
  const plans: Array<Plan> = plan.endsEarly ? [{ ...plan, endsEarly: false }] : []
  if (plan.isRead) plans.push({ ...plan, isRead: false })
  // A lookup that hangs is ended by its time-out alone.
  const plain = plan.lookups.some(({ ends }) => ends === "hangs")
    ? { ...plainOptions, lookupTimeout: plan.options.lookupTimeout }
    : plainOptions
  for (const options of plainerThan(plan.options, plain)) plans.push({ ...plan, options })
  if (plan.lookups.length > 1) plans.push({ ...plan, lookups: plan.lookups.slice(0, -1) })
  for (const [i, lookup] of plan.lookups.entries()) {
    for (const plainer of plainerThan(lookup, plainLookup)) {
      plans.push({ ...plan, lookups: plan.lookups.with(i, plainer) })
    }
  }
  for (const [i, operations] of plan.fibers.entries()) {
    for (const [j, step] of operations.entries()) {
      for (const plainer of plainerThan(step, operation(step.kind, step.key))) {
        plans.push({ ...plan, fibers: plan.fibers.with(i, operations.with(j, plainer)) })
      }
    }
  }
  return plans
}

const plainerThan = <T extends object>(value: T, plain: T): ReadonlyArray<T> => {
  const plainer: Array<T> = []
  for (const name in plain) {
    if (value[name] !== plain[name]) plainer.push({ ...value, [name]: plain[name] })
  }
  return plainer
}

// -----------------------------------------------------------------------------
// Running a plan
// -----------------------------------------------------------------------------

type Pool = SessionPool.SessionPool<string, Connection, "refused">

const pause = (length: Pause): Effect.Effect<void> =>
  length === "none" ? Effect.void : length === "yield" ? Effect.yieldNow : Effect.sleep(length)

/** Runs the plan under the choices of one schedule, and says which promise was broken first. */
export const run = (plan: Plan, chooser: Chooser, punctual: boolean): Verdict => {
  const machine = new Machine(chooser, punctual)
  const watch = new Watch(plan.options, punctual, () => machine.currentTimeMillisUnsafe())
  const exit = machine.run(
    program(plan, machine, watch),
    () => watch.rests(),
    () => watch.broken !== undefined
  )
  if (watch.broken !== undefined) return watch.broken
  if (exit === undefined) watch.fail("6 bounded: somebody waits for ever, or runs in a circle")
  else if (Exit.isFailure(exit)) watch.fail(`the run itself failed: ${Cause.pretty(exit.cause)}`)
  else watch.ended(machine.leftAtEnd ?? machine.left, machine.left)
  return watch.broken
}

const program = (plan: Plan, machine: Machine, watch: Watch) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const pool: Pool = yield* SessionPool.make(options(plan, watch)).pipe(Scope.provide(scope))
    watch.attach(pool)
    const reader = plan.isRead
      ? yield* Effect.forkChild(Stream.runForEach(SessionPool.events(pool), () => Effect.yieldNow), {
        startImmediately: true
      })
      : undefined
    machine.exploring = true
    const fibers = yield* Effect.forEach(plan.fibers, (operations) =>
      Effect.forkChild(Effect.forEach(operations, (operation) => perform(pool, watch, operation))))
    if (plan.endsEarly) {
      yield* Effect.sleep(4)
    } else {yield* Effect.forEach(fibers, (fiber) =>
        Fiber.await(fiber))}
    watch.ending = true
    yield* Scope.close(scope, Exit.void)
    watch.scopeClosed()
    yield* Effect.forEach(fibers, (fiber) => Fiber.await(fiber))
    // Its events end with the pool, or this waits for ever.
    if (reader !== undefined) yield* Fiber.join(reader)
    machine.exploring = false
    yield* afterTheEnd(pool, watch)
  })

const afterTheEnd = (pool: Pool, watch: Watch) =>
  Effect.gen(function*() {
    const got = yield* Effect.exit(Effect.scoped(SessionPool.get(pool, "a1")))
    const error = Exit.isFailure(got) ? Option.getOrUndefined(Cause.findErrorOption(got.cause)) : undefined
    if (typeof error !== "object" || error._tag !== "PoolClosed") watch.fail("8 the end: get works on")
    if (Option.isSome(yield* SessionPool.touch(pool, "a1"))) watch.fail("8 the end: touch works on")
  })

const options = (plan: Plan, watch: Watch) => {
  const { keepAlive, validateAfter } = plan.options
  const validates = validateAfter < Infinity || keepAlive < Infinity
  const lookups = new Map<Connection, Lookup>()
  let launches = 0
  const { groupCapacity, ...rest } = plan.options
  return {
    ...rest,
    ...(groupCapacity < Infinity ? { groupCapacity } : {}),
    groupBy: watch.handover.groupBy,
    validate: (connection: Connection) => Effect.as(Effect.yieldNow, lookups.get(connection)?.valid ?? true),
    ...(validates ? {} : { validate: undefined, validateAfter: undefined, keepAlive: undefined }),
    closed: (connection: Connection) =>
      Effect.andThen(
        Effect.sleep(lookups.get(connection)?.livesFor ?? Infinity),
        Effect.sync(() => connection.died = true)
      ),
    lookup: (key: string): Effect.Effect<Connection, "refused", Scope.Scope> =>
      Effect.acquireUseRelease(
        Effect.sync(() => watch.lookupBegins(key)),
        () => open(watch, key, plan.lookups[launches++ % plan.lookups.length] ?? plainLookup, lookups),
        () => Effect.sync(() => watch.lookupEnds(key))
      )
  }
}

/** Opens a connection; what goes wrong goes wrong after it is open, when there is something to close. */
const open = (watch: Watch, key: string, lookup: Lookup, lookups: Map<Connection, Lookup>) =>
  Effect.gen(function*() {
    const connection = yield* Effect.acquireRelease(
      Effect.sync(() => watch.opens(key)),
      (connection) => close(watch, connection, lookup.closing)
    )
    lookups.set(connection, lookup)
    yield* pause(lookup.takes)
    if (lookup.ends === "fails") return yield* Effect.fail("refused" as const)
    if (lookup.ends === "dies") return yield* Effect.die("broken")
    if (lookup.ends === "hangs") return yield* Effect.never
    connection.openedAt = watch.now()
    return connection
  })

const close = (watch: Watch, connection: Connection, closing: Lookup["closing"]) =>
  Effect.gen(function*() {
    watch.closeBegins(connection)
    if (closing !== "fails") yield* pause(closing)
    watch.closes(connection)
    if (closing === "fails") yield* Effect.die("cannot close")
  })

/** Runs one operation; its exit must be one that the design knows. */
const perform = (pool: Pool, watch: Watch, operation: Operation): Effect.Effect<void> =>
  Effect.gen(function*() {
    const { interrupted, kind } = operation
    if (kind === "pause") return yield* pause(operation.holds)
    const call = Effect.exit(calls[kind](pool, watch, operation))
    if (!interrupted) return judge(watch, operation, yield* call)
    // Begun at once, so that the interruption meets it wherever it yields first, or later if the parent yields too.
    const fiber = yield* Effect.forkChild(call, { startImmediately: true })
    yield* Fiber.interrupt(fiber)
  })

const judge = (watch: Watch, { kind }: Operation, exit: Exit.Exit<unknown, unknown>): void => {
  if (Exit.isSuccess(exit)) return
  const { cause } = exit
  if (Cause.hasInterruptsOnly(cause)) return watch.fail(`5 single flight: ${kind} was interrupted by nobody`)
  const error = Option.getOrUndefined(Cause.findErrorOption(cause))
  const known = error === undefined
    ? Cause.squash(cause) === "broken"
    : error === "refused" || error === "failed" || (typeof error === "object" && error !== null && "_tag" in error)
  if (!known) watch.fail(`${kind} ended with ${Cause.pretty(cause)}`)
  const tag = typeof error === "object" && error !== null && "_tag" in error ? error._tag : undefined
  if (tag === "PoolClosed" && !watch.ending) watch.fail("8 the end: PoolClosed while the pool is open")
}

/** Uses a connection for a while, as a caller that has leased it. */
const hold = (watch: Watch, connection: Connection, holds: Pause) =>
  Effect.acquireUseRelease(
    Effect.sync(() => connection.users++),
    () => {
      watch.uses(connection)
      return Effect.andThen(pause(holds), Effect.sync(() => watch.uses(connection)))
    },
    () =>
      Effect.sync(() => {
        connection.users--
        watch.usedUntilNow(connection)
      })
  )

const calls: Record<
  Exclude<Operation["kind"], "pause">,
  (pool: Pool, watch: Watch, operation: Operation) => Effect.Effect<unknown, unknown>
> = {
  get: (pool, watch, { holds, key }) =>
    Effect.scoped(Effect.gen(function*() {
      const call = watch.call(key)
      const connection = yield* SessionPool.get(pool, key)
      watch.gets(connection, call)
      yield* hold(watch, connection, holds)
    })),
  use: (pool, watch, { fails, holds, key }) =>
    Effect.suspend(() => {
      const call = watch.call(key)
      return SessionPool.use(pool, key, (connection) => {
        watch.gets(connection, call)
        return Effect.andThen(hold(watch, connection, holds), fails ? Effect.fail("failed") : Effect.void)
      })
    }),
  getOption: (pool, watch, { holds, key }) =>
    Effect.scoped(Effect.gen(function*() {
      const call = watch.call(key)
      const connection = yield* SessionPool.getOption(pool, key)
      if (Option.isNone(connection)) return
      watch.gets(connection.value, call)
      yield* hold(watch, connection.value, holds)
    })),
  touch: (pool, watch, { key }) =>
    Effect.suspend(() => {
      const call = watch.call(key)
      return Effect.map(
        SessionPool.touch(pool, key),
        (connection) => Option.isSome(connection) && watch.gets(connection.value, call)
      )
    }),
  set: (pool, watch, { key }) =>
    Effect.suspend(() => {
      const connection = watch.opens(key, true)
      return watch.handover.offer(
        SessionPool.set(pool, key, connection, close(watch, connection, "yield")),
        () => connection.accepted = true
      )
    }),
  invalidate: (pool, _, { key }) => SessionPool.invalidate(pool, key),
  invalidateAll: (pool) => SessionPool.invalidateAll(pool),
  recordError: (pool, _, { key }) => SessionPool.recordError(pool, key),
  sweep: (pool) => SessionPool.sweep(pool)
}
