/**
 * Sleeping sessions in PostgreSQL, so that a session can wake on any replica.
 *
 * A replica that finds a session takes it over: the generation of its row grows, and the database refuses later writes of the former owner.
 * So a replica that was frozen, and does not know that another one took over, overwrites nothing.
 *
 * A reload of the configuration reaches only sessions that are awake. So each row has a mark of its back end's entry, and a session wakes
 * only if the mark still matches the entry.
 */
import { Array as Arr, Duration, Effect, FiberSet, Option, Random, RcMap, Schedule, Semaphore } from "effect"
import type { SqlClient } from "effect/sql"
import { createHmac } from "node:crypto"
import type * as ClientRecord from "../conversation/ClientRecord.ts"
import * as GatewayErrors from "../sessions/GatewayErrors.ts"
import type { Key } from "../sessions/Key.ts"
import type { Make, Sleepers } from "../sessions/Sleepers.ts"
import * as Patience from "./Patience.ts"
import * as SleeperTable from "./SleeperTable.ts"

/** A session that is awake here. */
interface Owned extends SleeperTable.Saved {
  /**
   * How many launches and processes have the session here. A process that still ends counts while the next one starts. When the last one
   * rests, this replica no longer owns the session.
   */
  holders: number
  revision: number
}

/** The sessions of one replica. The maps are by the text of a key. */
interface State {
  readonly table: SleeperTable.Table
  readonly owned: Map<string, Owned>
  /** The writes that are still due. */
  readonly pending: Map<string, SleeperTable.Saved | SleeperTable.Removed>
  readonly turns: RcMap.RcMap<string, Semaphore.Semaphore>
  readonly markOf: (key: Key) => string | undefined
  /** Ends a session here. Runs in a fiber of its own, because it may itself wait for the turn of this session. */
  readonly end: (key: Key) => void
}

/** The longest interval at which a replica extends the rows of its sessions, and checks whether sessions must be removed. */
const upkeep = Duration.minutes(1)
/** How long a request waits for the database. A write that takes longer is retried in the background. */
const patience = "3 seconds"
/** How many writes may be due. Beyond that, the oldest removal of a session that was not awake here is dropped. */
const maxPending = 10_000

/** Makes the sleepers of a replica. */
export const make = (sql: SqlClient.SqlClient, stateKey: string): Make =>
  Effect.fnUntraced(function*({ asleepTimeToLive, maxAsleep }, lost, entryTextOf) {
    const fork = yield* FiberSet.makeRuntime<never, void>()
    const table = SleeperTable.make(sql, asleepTimeToLive)
    const state: State = {
      table,
      owned: new Map(),
      pending: new Map(),
      turns: yield* RcMap.make({ lookup: (_text: string) => Semaphore.make(1) }),
      markOf: ({ backend }) => markOf(stateKey, entryTextOf(backend)),
      end: (key) => void fork(lost(key))
    }
    yield* Effect.forkScoped(Effect.repeat(Effect.ignore(writePending(state)), Schedule.spaced("1 second")))
    // At least three times per time to live, so that no replica removes a session that is awake here as expired.
    const interval = Duration.min(upkeep, Duration.divideUnsafe(asleepTimeToLive, 3))
    // Two fibers, so that a long removal does not delay the extension of the rows of this replica.
    for (const each of [keepAwake(state), SleeperTable.removeInTurn(table, maxAsleep)]) {
      const bounded = Effect.catch(
        Effect.timeout(Patience.unawaited(each), interval),
        ({ message }) => Effect.logWarning(`The database with the sleeping sessions does not answer: ${message}`)
      )
      yield* Effect.forkScoped(Effect.repeat(bounded, Schedule.spaced(interval)))
    }
    return sleepersOf(state)
  })

const sleepersOf = (state: State): Sleepers => {
  const { markOf, owned, pending, table } = state
  return {
    has: (key) =>
      Effect.suspend(() => {
        const due = pending.get(key.text)
        if (owned.has(key.text)) return Effect.succeed(true)
        if (due !== undefined) return Effect.succeed(due.record !== undefined)
        return reading(Patience.unawaited(SleeperTable.has(table, key)))
      }),
    take: (key) =>
      Effect.suspend(() => {
        const record = hold(state, key)
        return record === undefined ? reading(inTurn(state, key, wake(state, key))) : Effect.succeedSome(record)
      }),
    enter: (key, record) =>
      Effect.suspend(() => {
        const awake = {
          key,
          holders: 1,
          record,
          generation: 1,
          revision: 0,
          mark: markOf(key),
          row: { existed: false }
        }
        own(state, awake)
        save(state, awake)
        return writeSoon(state, key)
      }),
    rest: (key, record) =>
      Effect.suspend(() => {
        const awake = owned.get(key.text)
        if (awake?.record !== record) return Effect.void
        save(state, awake)
        // The next `take` reads the row again, because another replica may have woken the session in between.
        if (--awake.holders === 0) owned.delete(key.text)
        return writeSoon(state, key)
      }),
    remove: (key) =>
      Effect.suspend(() => {
        // A session with a due write may not have a row yet. Its removal must insert one, so it needs a generation.
        const generation = owned.get(key.text)?.generation ??
          (wasHere(pending.get(key.text)) ? SleeperTable.last : undefined)
        owned.delete(key.text)
        dueRemoval(state, key, generation)
        return writeSoon(state, key)
      }),
    isKnown: (key) => Effect.sync(() => owned.has(key.text) || pending.has(key.text)),
    keys: Effect.sync(() => [...owned.values()].map(({ key }) => key))
  }
}

/** Counts one more holder of a session that is awake here, and returns the session's record. */
const hold = ({ owned }: State, { text }: Key): ClientRecord.ClientRecord | undefined => {
  const awake = owned.get(text)
  if (awake !== undefined) awake.holders++
  return awake?.record
}

/** Takes a session over from the database, if its back end's entry is the same as when the session was opened. */
const wake = Effect.fnUntraced(function*(state: State, key: Key) {
  // An earlier request may have taken it while this one waited for its turn.
  const record = hold(state, key)
  if (record !== undefined) return Option.some(record)
  // A due write is newer than the row.
  yield* write(state, key)
  const taken = yield* SleeperTable.take(state.table, key)
  if (taken === undefined) return Option.none()
  if (taken.mark !== state.markOf(key)) {
    dueRemoval(state, key, taken.generation)
    yield* write(state, key)
    return Option.none()
  }
  own(state, { ...taken, key, holders: 1, revision: 0, row: { existed: true } })
  return Option.some(taken.record)
})

const own = (state: State, awake: Owned) => {
  state.owned.set(awake.key.text, awake)
  awake.record.changed = () => {
    if (state.owned.get(awake.key.text) === awake) save(state, awake)
  }
}

/** Makes a write of a record due. */
const save = ({ pending }: State, awake: Owned) => {
  awake.revision++
  pending.set(awake.key.text, { ...awake })
}

/** Makes a removal due. `SleeperTable.Removed` explains `generation`. */
const dueRemoval = ({ pending }: State, key: Key, generation: number | undefined) => {
  // Delete first, so that the removal is the newest entry, also if an earlier one is due.
  pending.delete(key.text)
  pending.set(key.text, { key, record: undefined, generation })
  if (pending.size <= maxPending) return
  for (const [text, due] of pending) if (!wasHere(due)) return void pending.delete(text)
}

/**
 * Whether a due write is of a session that was awake here. Another session may be asleep, or its id may be made up. While the database is
 * away, a replica cannot tell which.
 */
const wasHere = (due: SleeperTable.Saved | SleeperTable.Removed | undefined): boolean => due?.generation !== undefined

/**
 * Runs the due write of a session, if any. Writing twice is harmless, because both writes are the same. A late abandoned write is
 * harmless too: it has an older revision than the row, so it changes nothing.
 */
const write = (state: State, key: Key) =>
  Effect.suspend(() => {
    const { owned, pending, table } = state
    const due = pending.get(key.text)
    if (due === undefined) return Effect.void
    return Effect.map(SleeperTable.write(table, due), (isWritten) => {
      if (pending.get(key.text) === due) pending.delete(key.text)
      if (due.record === undefined) return
      if (isWritten) {
        due.row.existed = true
        return
      }
      if (owned.get(key.text)?.generation === due.generation) disown(state, key)
    })
  })

/** Ends a session here, because another replica took it over or it expired. */
const disown = ({ end, owned, pending }: State, key: Key) => {
  owned.delete(key.text)
  pending.delete(key.text)
  end(key)
}

/**
 * Runs the statements of one session one after the other. The pool has five connections. On two of them, a removal could overtake the
 * statement that enters the session, and two requests could each take the session from the other.
 *
 * An abandoned statement does not keep the next one waiting. If it takes effect late, it changes nothing (`SleeperTable`).
 */
const inTurn = <A, E>({ turns }: State, { text }: Key, effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.scoped(Effect.flatMap(RcMap.get(turns, text), (turn) => turn.withPermit(Patience.unawaited(effect))))

const writeInTime = (state: State, key: Key) => Effect.timeout(inTurn(state, key, write(state, key)), patience)
/** Runs the due write of a session now. If that fails, `writePending` retries it. */
const writeSoon = (state: State, key: Key) => Effect.ignore(writeInTime(state, key))

/**
 * Runs the due writes. Stops at the first failure, because the database may be away. The order is random, so one bad write does not block
 * the others forever.
 */
const writePending = (state: State) =>
  Effect.flatMap(
    Effect.suspend(() => Random.shuffle(state.pending.values())),
    (due) => Effect.forEach(due, ({ key }) => writeInTime(state, key), { discard: true })
  )

/** Bounds a read of the database by `patience`. Every failure becomes `RecordsUnreachable`. */
const reading = <A, E extends { readonly message: string }>(asked: Effect.Effect<A, E>) =>
  asked.pipe(
    Effect.timeout(patience),
    Effect.tapError(({ message }) =>
      Effect.logWarning(`A sleeping session could not be read from the database: ${message}`)
    ),
    Effect.mapError(() => GatewayErrors.recordsUnreachable())
  )

/** Extends the rows of the sessions that are awake here, and ends those that another replica has taken over. */
const keepAwake = Effect.fnUntraced(function*(state: State) {
  const { owned, pending, table } = state
  for (const awake of Arr.chunksOf([...owned].filter(([text]) => !pending.has(text)), SleeperTable.batch)) {
    const found = yield* SleeperTable.extend(table, awake.map(([text]) => text))
    for (const [text, each] of awake) {
      // Skips a session that has rested or changed meanwhile, because it may have another generation already.
      const isSame = owned.get(text) === each && !pending.has(text)
      if (isSame && found.get(text) !== each.generation) disown(state, each.key)
    }
  }
})

/** A keyed hash (HMAC, RFC 2104) of a back end's entry. The entry may hold secrets, which a reader of the database must not guess. */
const markOf = (stateKey: string, entry: string | undefined): string | undefined =>
  entry === undefined ? undefined : createHmac("sha256", stateKey).update(`entry ${entry}`).digest("base64url")
