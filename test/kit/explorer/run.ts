/** Runs a plan under one schedule, on a pool that `watch.ts` watches. */
import { Cause, Effect, Exit, Fiber, Option, Scope, Stream } from "effect"
import { SessionPool } from "../../../src/index.ts"
import { toNumber } from "../limits.ts"
import type { Lookup, Operation, Pause, Plan } from "./plan.ts"
import { optionsOf, plainLookup } from "./plan.ts"
import type { Choose, Run } from "./schedule.ts"
import { Machine } from "./schedule.ts"
import type { Call, Connection } from "./watch.ts"
import { Watch } from "./watch.ts"

/** `punctual`: time passes only when nothing else can run, so the pool must do everything in time. */
export const run = (plan: Plan, choose: Choose, punctual: boolean): Run => {
  const machine = new Machine(choose, punctual)
  machine.tasksLeft = 5000
  const watch = new Watch(optionsOf(plan), punctual, () => machine.now)
  const fiber = machine.fork(program(plan, machine, watch))
  let left: ReadonlyArray<number> | undefined
  const quiet = () => {
    watch.rests()
    if (fiber.pollUnsafe() !== undefined) left ??= machine.left
  }
  machine.advance(Infinity, quiet, () => watch.broken !== undefined)
  const exit = fiber.pollUnsafe()
  if (exit === undefined) watch.fail(6, "a caller waits forever, or loops")
  else if (Exit.isFailure(exit)) watch.fail(8, "the run itself failed:", Cause.pretty(exit.cause))
  else watch.ended(left ?? machine.left, machine.left)
  return { verdict: watch.broken, options: machine.options }
}

const program = (plan: Plan, machine: Machine, watch: Watch) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const pool = yield* SessionPool.make(options(plan, watch)).pipe(Scope.provide(scope))
    watch.attach(pool)
    const events = Stream.runForEach(SessionPool.events(pool), () => Effect.yieldNow)
    const reader = yield* Effect.forkChild(plan.isRead ? events : Effect.void, { startImmediately: true })
    const perform = performer(pool, watch)
    machine.exploring = true
    const fibers = yield* Effect.forEach(plan.fibers, (steps) => Effect.forkChild(Effect.forEach(steps, perform)))
    yield* plan.endsEarly ? Effect.sleep(4) : Fiber.awaitAll(fibers)
    watch.ending = true
    yield* Scope.close(scope, Exit.void)
    watch.scopeClosed()
    yield* Fiber.awaitAll(fibers)
    // The events end with the pool.
    yield* Fiber.join(reader)
    machine.exploring = false
    const got = yield* Effect.exit(Effect.scoped(SessionPool.get(pool, "a1")))
    if (Exit.isSuccess(got)) watch.fail(8, "get succeeds after the end")
    if (Option.isSome(yield* SessionPool.touch(pool, "a1"))) watch.fail(8, "touch finds a session after the end")
  })

const pause = (length: Pause): Effect.Effect<void> =>
  length === "none" ? Effect.void : length === "yield" ? Effect.yieldNow : Effect.sleep(length)

// -----------------------------------------------------------------------------
// The back end
// -----------------------------------------------------------------------------

const options = (plan: Plan, watch: Watch) => {
  const { groupCapacity, keepAlive, validateAfter, ...rest } = optionsOf(plan)
  const validates = {
    validateAfter,
    keepAlive,
    validate: ({ lookup }: Connection) => Effect.as(Effect.yieldNow, lookup?.isValid ?? true)
  }
  let launches = 0
  return {
    ...rest,
    ...(groupCapacity < Infinity ? { groupCapacity } : {}),
    ...(Math.min(validateAfter, keepAlive) < Infinity ? validates : {}),
    groupBy: watch.handover.groupBy,
    closed: (connection: Connection) =>
      Effect.andThen(
        Effect.sleep(toNumber(connection.lookup?.livesFor ?? "off")),
        Effect.sync(() => connection.died = true)
      ),
    lookup: (key: string) =>
      Effect.suspend(() => open(watch, key, plan.lookups[launches++ % plan.lookups.length] ?? plainLookup))
  }
}

/** Opens a connection. A lookup fails, dies or hangs only after the connection is open, so there is something to close. */
const open = (watch: Watch, key: string, lookup: Lookup) =>
  Effect.gen(function*() {
    const opened = Effect.sync(() => watch.opens(key, lookup))
    const connection = yield* Effect.acquireRelease(opened, (connection) => close(watch, connection))
    yield* pause(lookup.takes)
    if (lookup.ends === "fails") return yield* Effect.fail("refused" as const)
    if (lookup.ends === "dies") return yield* Effect.die("broken")
    if (lookup.ends === "hangs") return yield* Effect.never
    return connection
  })

const close = (watch: Watch, connection: Connection) =>
  Effect.gen(function*() {
    const closing = connection.lookup?.closing ?? "yield"
    watch.closeBegins(connection)
    if (closing !== "fails") yield* pause(closing)
    watch.closes(connection)
    if (closing === "fails") yield* Effect.die("cannot close")
  })

// -----------------------------------------------------------------------------
// The callers
// -----------------------------------------------------------------------------

const performer = (pool: SessionPool.SessionPool<string, Connection, "refused">, watch: Watch) => {
  /** Uses a connection for a while, as its lease allows. */
  const hold = (connection: Connection, { holds }: Operation, call: Call) =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        watch.gets(connection, call)
        connection.users++
        if (connection.closingSince < Infinity && !watch.ending) watch.fail(2, "a caller uses a closing session")
      }),
      () => pause(holds),
      () =>
        Effect.sync(() => {
          connection.users--
          connection.usedAt = watch.now()
        })
    )
  const calls: Record<
    Operation["kind"],
    (operation: Operation, call: Call) => Effect.Effect<unknown, unknown, Scope.Scope>
  > = {
    get: (operation, call) =>
      Effect.flatMap(SessionPool.get(pool, operation.key), (connection) => hold(connection, operation, call)),
    getOption: (operation, call) =>
      Effect.flatMap(
        SessionPool.getOption(pool, operation.key),
        Option.match({ onNone: () => Effect.void, onSome: (connection) => hold(connection, operation, call) })
      ),
    use: (operation, call) =>
      SessionPool.use(pool, operation.key, (connection) =>
        Effect.andThen(
          hold(connection, operation, call),
          operation.fails ? Effect.fail("failed") : Effect.void
        )),
    // Uses a session, then retires this very one.
    report: (operation, call) =>
      SessionPool.use(pool, operation.key, (connection, { invalidate }) =>
        Effect.andThen(
          Effect.andThen(hold(connection, operation, call), invalidate),
          Effect.sync(() => watch.reported(connection))
        )),
    touch: ({ key }, call) =>
      Effect.map(SessionPool.touch(pool, key), Option.map((connection) => watch.gets(connection, call))),
    set: ({ key }) => {
      const connection = watch.opens(key, undefined)
      const set = SessionPool.set(pool, key, connection, close(watch, connection))
      return watch.handover.offer(set, () => connection.accepted = true)
    },
    invalidate: ({ key }) => SessionPool.invalidate(pool, key),
    invalidateAll: () => SessionPool.invalidateAll(pool),
    recordError: ({ key }) => SessionPool.recordError(pool, key),
    sweep: () => SessionPool.sweep(pool),
    pause: ({ holds }) => pause(holds)
  }
  /** An operation may fail only with an error of the pool or of this file. */
  const judge = (kind: string, cause: Cause.Cause<unknown>): void => {
    const error = Cause.squash(cause)
    const reason = error instanceof SessionPool.SessionPoolError ? error.reason._tag : undefined
    const known = reason !== undefined || ["broken", "refused", "failed"].includes(String(error))
    if (Cause.hasInterruptsOnly(cause) || !known) watch.fail(5, `${kind} ended with`, Cause.pretty(cause))
    if (reason === "PoolClosed" && !watch.ending) watch.fail(8, "PoolClosed while the pool is open")
  }
  return (operation: Operation): Effect.Effect<void> =>
    Effect.gen(function*() {
      const { interrupted, key, kind } = operation
      const call = Effect.exit(Effect.scoped(Effect.suspend(() => calls[kind](operation, watch.call(key)))))
      // The fiber starts at once. The interruption meets it at its first yield, or later if the parent yields too.
      if (interrupted) return yield* Fiber.interrupt(yield* Effect.forkChild(call, { startImmediately: true }))
      const exit = yield* call
      if (Exit.isFailure(exit)) judge(kind, exit.cause)
    })
}
