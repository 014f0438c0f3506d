/**
 * Sessions that sleep in PostgreSQL: whose they are, what is written when, and what becomes of them when the database is slow or
 * away. One file, over 500 lines, because all share one database, which is stopped and locked in turn.
 */
import { PgClient } from "@effect/sql-pg"
import { assert, describe, layer } from "@effect/vitest"
import { Clock, Context, Duration, Effect, Fiber, Layer, Option, Redacted, Schedule } from "effect"
import type { Statement } from "effect/sql"
import { SqlClient } from "effect/sql"
import * as SleeperTable from "../../src/gateway/cluster/SleeperTable.ts"
import * as StoredSleepers from "../../src/gateway/cluster/StoredSleepers.ts"
import * as ClientRecord from "../../src/gateway/conversation/ClientRecord.ts"
import * as Json from "../../src/gateway/protocol/Json.ts"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import { Key } from "../../src/gateway/sessions/Key.ts"
import type { Limits } from "../../src/gateway/sessions/Sleepers.ts"
import * as Holding from "../kit/cluster/holding.ts"
import * as Postgres from "../kit/cluster/postgres.ts"
import * as AheadClock from "../kit/gateway/aheadClock.ts"

class Database extends Context.Service<Database, Postgres.Postgres>()("test/Database") {}

const clientOf = ({ url }: Pick<Postgres.Postgres, "url">, applicationName = "test") =>
  Effect.map(
    Layer.build(PgClient.layer({ url: Redacted.make(url), applicationName })),
    Context.get(SqlClient.SqlClient)
  )

const client = Effect.flatMap(Database, clientOf)

/** With the table, which is made by one at a time. */
const database = Layer.effect(
  Database,
  Effect.tap(
    Postgres.make,
    (postgres) =>
      Effect.scoped(
        Effect.flatMap(
          clientOf(postgres),
          (sql) => Effect.provideService(SleeperTable.migrate, SqlClient.SqlClient, sql)
        )
      )
  )
)

const secretEntry = "{\"env\":{\"TOKEN\":\"hunter2\"}}"

const defaults: Limits = { asleepTimeToLive: Duration.hours(1), maxAsleep: 1000 }

let replicas = 0
/**
 * What one replica knows of the sessions, with a connection of its own; `lost`: those that it has had to end; `entries`: what its
 * file says of the back ends.
 */
const replica = Effect.fnUntraced(function*(
  limits: Partial<Limits> = {},
  observed: (sql: SqlClient.SqlClient) => SqlClient.SqlClient = (sql) => sql,
  url?: string
) {
  const database = yield* Database
  /** Names its connections in `pg_stat_activity`. */
  const applicationName = `replica-${++replicas}`
  const sql = observed(yield* clientOf({ url: url ?? database.url }, applicationName))
  const lost: Array<Key> = []
  const entries = new Map([["backend", secretEntry]])
  const sleepers = yield* StoredSleepers.make(sql, "the same key on every replica")(
    { ...defaults, ...limits },
    (key) => Effect.sync(() => lost.push(key)),
    (name) => entries.get(name)
  )
  return { ...sleepers, lost, sql, entries, applicationName }
})

/** Calls `observe` with each statement of a replica. */
const observing = (observe: (statement: Statement.Statement<unknown>) => void) => (sql: SqlClient.SqlClient) =>
  new Proxy(sql, {
    apply: (target, self, args) => {
      const made: Statement.Fragment = Reflect.apply(target, self, args)
      if (isStatement(made)) observe(made)
      return made
    }
  })

const isStatement = (made: Statement.Fragment): made is Statement.Statement<unknown> => "compile" in made

/** The statement that enters a session. The upkeep's statement is an INSERT too, and may come at any time. */
const entry = "INSERT INTO \"effect_session_pool_sessions\""

let made = 0
/** A session that no other test has. */
const session = (name = "one") => {
  const initialize = JsonRpc.request(1, "initialize", { clientInfo: { name, version: "1" } })
  return {
    key: new Key("backend", { id: "ada" }, `session-${made++}`),
    record: ClientRecord.make(initialize)
  }
}

const level = (record: ClientRecord.ClientRecord, level: string) =>
  ClientRecord.note(record, JsonRpc.request(2, "logging/setLevel", { level }))

const levelOf = (found: Option.Option<ClientRecord.ClientRecord>) =>
  Option.getOrUndefined(Option.map(found, (record) => Json.field(record.level?.params, "level")))

interface Row {
  readonly record: string
  readonly generation: number
}
/** Unless the session has been removed. */
const rowOf = (sql: SqlClient.SqlClient, { text }: Key) =>
  Effect.map(
    sql<Row>`SELECT record, generation FROM effect_session_pool_sessions WHERE key = ${text} AND record <> ''`,
    (rows) => rows[0]
  )

/** Whether a session is kept for now. */
const hasTime = (sql: SqlClient.SqlClient, { text }: Key) =>
  Effect.map(
    sql`SELECT 1 FROM effect_session_pool_sessions WHERE key = ${text} AND expires_at > NOW()`,
    ({ length }) => length > 0
  )

/** The next replica that asks removes what is to be removed. */
const removalIsDue = (sql: SqlClient.SqlClient) => sql`DELETE FROM effect_session_pool_upkeep`

/** So many sessions that sleep, and expire at the same time: so many seconds from now. */
const manyAsleep = (sql: SqlClient.SqlClient, name: string, count: number, seconds: number) =>
  sql`
    INSERT INTO effect_session_pool_sessions (key, record, generation, expires_at)
    SELECT ${name} || '-' || i, '{}', 1, NOW() + ${seconds} * INTERVAL '1 second' FROM GENERATE_SERIES(1, ${count}::INT) AS i
  `

/** How many sessions there are of each name. */
const countsOf = (sql: SqlClient.SqlClient) =>
  Effect.map(
    sql<{ readonly name: string; readonly count: number }>`
      SELECT SPLIT_PART(key, '-', 1) AS name, COUNT(*)::INT AS count FROM effect_session_pool_sessions GROUP BY 1 ORDER BY 1
    `,
    (rows) => Object.fromEntries(rows.map(({ count, name }) => [name, count]))
  )

/** The plan by which PostgreSQL runs a statement. */
const planOf = (sql: SqlClient.SqlClient, statement: Statement.Statement<unknown>) => {
  const [text, parameters] = statement.compile()
  return Effect.map(
    sql.unsafe<{ readonly "QUERY PLAN": string }>(`EXPLAIN ${text}`, parameters),
    (rows) => rows.map((row) => row["QUERY PLAN"]).join("\n")
  )
}

const until = <A, E, R>(what: string, check: Effect.Effect<A, E, R>, holds: (value: A) => boolean) =>
  check.pipe(
    Effect.repeat({ until: holds, schedule: Schedule.spaced("20 millis") }),
    Effect.timeoutOrElse({ duration: "25 seconds", orElse: () => Effect.die(new Error(`not in time: ${what}`)) }),
    // Uses the machine's clock, even if the replica has another.
    Effect.provideService(Clock.Clock, Clock.Clock.defaultValue())
  )

type Sleepers = Pick<Effect.Success<ReturnType<typeof replica>>, "enter" | "rest" | "take" | "lost" | "sql">

/** Enters a session that no other test has. */
const entered = (here: Sleepers, name?: string) => {
  const made = session(name)
  return Effect.as(here.enter(made.key, made.record), made)
}

/** Enters a session, and puts it to sleep. */
const asleep = (here: Sleepers) => Effect.tap(entered(here), ({ key, record }) => here.rest(key, record))

/** Wakes a session. */
const wake = (here: Sleepers, key: Key) => Effect.map(here.take(key), Option.getOrThrow)

const assertUnknown = (here: Sleepers, key: Key) =>
  Effect.map(here.take(key), (found) => assert.isTrue(Option.isNone(found)))

const untilWritten = (here: Sleepers, key: Key, text: string) =>
  until(`${text} is written`, rowOf(here.sql, key), (row) => row?.record.includes(text) === true)

const untilLost = (here: Sleepers) =>
  until("the former owner knows", Effect.sync(() => here.lost), (lost) => lost.length > 0)

/** No other statement reads or writes sessions while this runs. */
const whileLocked = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.scoped(Effect.gen(function*() {
    const connection = yield* (yield* client).reserve
    const run = (text: string) => connection.executeRaw(text, [])
    yield* Effect.acquireRelease(
      Effect.andThen(run("BEGIN"), run("LOCK TABLE effect_session_pool_sessions IN ACCESS EXCLUSIVE MODE")),
      () => Effect.orDie(run("COMMIT"))
    )
    return yield* effect
  }))

/** Returns once a statement of this replica waits for a lock. */
const waitsForLock = ({ applicationName }: { readonly applicationName: string }) =>
  Effect.scoped(Effect.flatMap(client, (sql) =>
    until(
      "it waits for a lock",
      sql`SELECT 1 FROM pg_stat_activity WHERE application_name = ${applicationName} AND wait_event_type = 'Lock'`,
      ({ length }) => length > 0
    )))

/** While `effect` runs, PostgreSQL enters no session whose client is called "held": the INSERT waits for an advisory lock. */
const whileEntriesAreHeld = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.scoped(Effect.gen(function*() {
    const connection = yield* (yield* client).reserve
    const run = (text: string) => connection.executeRaw(text, [])
    yield* run(`
      CREATE OR REPLACE FUNCTION held() RETURNS TRIGGER LANGUAGE plpgsql AS
      'BEGIN IF NEW.record LIKE ''%held%'' THEN PERFORM pg_advisory_xact_lock(1); END IF; RETURN NEW; END'
    `)
    yield* run(
      "CREATE OR REPLACE TRIGGER held BEFORE INSERT ON effect_session_pool_sessions FOR EACH ROW EXECUTE FUNCTION held()"
    )
    yield* Effect.acquireRelease(
      run("SELECT pg_advisory_lock(1)"),
      () => Effect.orDie(run("SELECT pg_advisory_unlock(1)"))
    )
    return yield* effect
  }))

layer(database, { timeout: "30 seconds", excludeTestServices: true })("stored sleepers", (it) => {
  // At once: most of it is waiting.
  describe.concurrent("owners of sessions", () => {
    it.effect("a session wakes on another replica with everything that its client has set", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const { key, record } = session("ada")
        ClientRecord.note(record, JsonRpc.notification("notifications/initialized"))
        yield* here.enter(key, record)
        for (const uri of ["a", "b", "a"]) {
          ClientRecord.note(record, JsonRpc.request(uri, "resources/subscribe", { uri }))
        }
        level(record, "error")
        yield* here.rest(key, record)
        assert.deepStrictEqual([...yield* here.keys], [])
        const found = yield* wake(there, key)
        assert.deepStrictEqual({ ...found, changed: record.changed }, record)
        assert.deepStrictEqual([...found.subscriptions.keys()], ["b", "a"])
        assert.deepStrictEqual([...yield* there.keys], [key])
      }))

    it.effect("a session wakes only while its back end's entry is the same as when it was opened", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const [{ key: kept }, { key: changed }, { key: removed }] = [
          yield* asleep(here),
          yield* asleep(here),
          yield* asleep(here)
        ]
        assert.notInclude((yield* rowOf(here.sql, kept))?.record, "hunter2")
        assert.isTrue(Option.isSome(yield* there.take(kept)))
        there.entries.set("backend", "{}")
        assert.isTrue(Option.isSome(yield* there.take(kept)), "the reload itself ends an awake session")
        yield* assertUnknown(there, changed)
        there.entries.delete("backend")
        yield* assertUnknown(there, removed)
        // The entry has changed back, but the session stays removed.
        yield* assertUnknown(here, changed)
        assert.deepStrictEqual([yield* rowOf(here.sql, changed), yield* rowOf(here.sql, removed)], [
          undefined,
          undefined
        ])
      }))

    it.effect("a session that is written after a reload keeps the mark of the entry with which it was opened", () =>
      Effect.gen(function*() {
        const here = yield* replica()
        const { key, record } = yield* entered(here)
        here.entries.set("backend", "{}")
        level(record, "error")
        yield* here.rest(key, record)
        yield* assertUnknown(here, key)
      }))

    it.effect("a session that wakes while its old process still ends stays awake until its new process rests", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const { key, record } = yield* entered(here)
        const woken = yield* wake(here, key)
        yield* here.rest(key, record)
        assert.deepStrictEqual([...yield* here.keys], [key])
        level(woken, "debug")
        yield* untilWritten(here, key, "debug")
        yield* here.rest(key, woken)
        assert.deepStrictEqual([...yield* here.keys], [])
        assert.strictEqual(levelOf(yield* there.take(key)), "debug")
      }))

    it.effect("`has` takes no session from its owner, and an expired session is unknown", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const { key, record } = session()
        assert.isFalse(yield* here.has(key))
        yield* assertUnknown(here, key)
        yield* here.enter(key, record)
        assert.deepStrictEqual([yield* here.has(key), yield* there.has(key)], [true, true])
        yield* here.rest(key, record)
        assert.deepStrictEqual([yield* here.has(key), yield* there.has(key)], [true, true])
        assert.strictEqual((yield* rowOf(here.sql, key))?.generation, 1)
        assert.deepStrictEqual([...yield* there.keys], [])
        yield* here.sql`UPDATE effect_session_pool_sessions SET expires_at = NOW() WHERE key = ${key.text}`
        assert.isFalse(yield* there.has(key))
        yield* assertUnknown(here, key)
      }))

    it.effect("the row of an awake session is read once, and each change of its record is written", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const { key } = yield* asleep(there)
        const woken = yield* here.take(key)
        assert.strictEqual((yield* rowOf(here.sql, key))?.generation, 2)
        assert.strictEqual(yield* wake(here, key), Option.getOrThrow(woken))
        assert.strictEqual((yield* rowOf(here.sql, key))?.generation, 2)
        level(Option.getOrThrow(woken), "debug")
        const row = yield* untilWritten(here, key, "debug")
        assert.strictEqual(row?.generation, 2)
      }))

    it.effect("a former owner cannot write a session that another replica took over, and ends it", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const { key, record } = yield* entered(here)
        const taken = yield* wake(there, key)
        level(taken, "by the new owner")
        yield* untilWritten(here, key, "new owner")
        level(record, "by the former owner")
        yield* untilLost(here)
        assert.deepStrictEqual(here.lost, [key])
        assert.deepStrictEqual([...yield* here.keys], [])
        // Its process ends, and the session would go to sleep.
        level(record, "after the end")
        yield* here.rest(key, record)
        assert.deepStrictEqual(there.lost, [])
        yield* there.rest(key, taken)
        assert.strictEqual(levelOf(yield* here.take(key)), "by the new owner")
      }))

    it.effect("a former owner ends a session that another replica took over also if it writes nothing", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica({ asleepTimeToLive: Duration.seconds(3) }), yield* replica()]
        const { key } = yield* entered(here)
        yield* there.take(key)
        yield* untilLost(here)
        assert.deepStrictEqual([here.lost, there.lost], [[key], []])
      }))

    it.effect("a session that rests at its former owner stays ended if its row is gone already", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const { key, record } = yield* entered(here)
        yield* wake(there, key)
        yield* there.remove(key)
        // Ten minutes later the row of a removed session is gone.
        yield* there.sql`DELETE FROM effect_session_pool_sessions WHERE key = ${key.text}`
        yield* here.rest(key, record)
        assert.isFalse(yield* there.has(key))
      }))

    it.effect("a session that rests at its former owner keeps the record of its new owner", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const { key, record } = yield* entered(here)
        const taken = yield* wake(there, key)
        yield* here.rest(key, record)
        level(taken, "debug")
        yield* there.rest(key, taken)
        assert.strictEqual(levelOf(yield* here.take(key)), "debug")
      }))

    it.effect("an awake session does not expire, and a sleeping one does", () =>
      Effect.gen(function*() {
        const here = yield* replica({ asleepTimeToLive: Duration.seconds(6) })
        const [awake, asleep] = [session(), session()]
        for (const { key, record } of [awake, asleep]) yield* here.enter(key, record)
        yield* here.rest(asleep.key, asleep.record)
        // Expires both entries. The replica then renews the one that is awake.
        yield* here.sql`
          UPDATE effect_session_pool_sessions SET expires_at = expires_at - INTERVAL '1 hour'
          WHERE key IN (${awake.key.text}, ${asleep.key.text})
        `
        yield* until(
          "its time has begun anew",
          hasTime(here.sql, awake.key),
          (has) => has
        )
        yield* removalIsDue(here.sql)
        const there = yield* replica()
        yield* assertUnknown(there, asleep.key)
        yield* until("its row is removed", rowOf(there.sql, asleep.key), (row) => row === undefined)
        yield* here.rest(awake.key, awake.record)
        assert.deepStrictEqual(here.lost, [])
        assert.isTrue(Option.isSome(yield* there.take(awake.key)))
      }))

    it.effect("a session that is removed at one replica ends at the replica where it is awake", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const { key, record } = yield* entered(here)
        yield* there.remove(key)
        level(record, "debug")
        yield* untilLost(here)
        yield* assertUnknown(here, key)
      }))

    it.effect("two requests at the same time wake a session once", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica(), yield* replica()]
        const { key } = yield* asleep(there)
        const [first, second] = yield* Effect.all([here.take(key), here.take(key)], { concurrency: "unbounded" })
        assert.strictEqual(Option.getOrUndefined(first), Option.getOrUndefined(second))
        const woken = Option.getOrThrow(first)
        level(woken, "debug")
        yield* here.rest(key, woken)
        assert.strictEqual(levelOf(yield* there.take(key)), "debug")
      }))

    it.effect("a request that arrives while a session goes to sleep wakes it again", () =>
      Effect.gen(function*() {
        const here = yield* replica()
        const { key, record } = yield* entered(here)
        const [resting, waking] = yield* whileLocked(Effect.gen(function*() {
          const resting = yield* Effect.forkDetach(here.rest(key, record))
          yield* waitsForLock(here)
          const waking = yield* Effect.forkDetach(here.take(key), { startImmediately: true })
          return [resting, waking] as const
        }))
        yield* Fiber.join(resting)
        const woken = Option.getOrThrow(yield* Fiber.join(waking))
        level(woken, "debug")
        yield* here.rest(key, woken)
        assert.deepStrictEqual([...yield* here.keys], [])
        assert.strictEqual(levelOf(yield* here.take(key)), "debug")
      }))

    it.effect("a session that is removed during its first write stays removed", () =>
      Effect.gen(function*() {
        const here = yield* replica()
        const { key, record } = session("held")
        const [entering, removing] = yield* whileEntriesAreHeld(Effect.gen(function*() {
          const entering = yield* Effect.forkDetach(here.enter(key, record))
          yield* waitsForLock(here)
          const removing = yield* Effect.forkDetach(here.remove(key), { startImmediately: true })
          return [entering, removing] as const
        }))
        yield* Fiber.join(entering)
        yield* Fiber.join(removing)
        assert.isUndefined(yield* rowOf(here.sql, key))
        yield* assertUnknown(here, key)
      }))
  })

  describe.concurrent("a silent database", () => {
    it.effect("each operation waits for a silent database for at most three seconds", () =>
      Effect.gen(function*() {
        const clock = AheadClock.make()
        const holding = yield* Holding.make((yield* Database).url)
        const asked = (
          text: string,
          ask: (here: Effect.Success<ReturnType<typeof replica>>) => Effect.Effect<unknown, unknown>
        ) =>
          Effect.gen(function*() {
            const here = yield* replica({}, (sql) => sql, holding.url)
            holding.holdFrom(text)
            const before = holding.held()
            const asking = yield* Effect.forkChild(Effect.exit(ask(here)))
            yield* until("it is kept back", Effect.sync(holding.held), (held) => held > before)
            const isWaitedFor = asking.pollUnsafe() === undefined
            clock.pass("3 seconds")
            yield* Fiber.join(asking)
            return [text, isWaitedFor, holding.held()] as const
          }).pipe(Effect.provideService(Clock.Clock, clock))
        const { key, record } = session()
        const told = [
          yield* asked(entry, (here) => here.enter(key, record)),
          yield* asked("SELECT 1", (here) => here.has(key)),
          yield* asked("SELECT generation", (here) => here.take(key)),
          yield* asked("SET record = $1", (here) => here.remove(key))
        ]
        assert.deepStrictEqual(told, [
          [entry, true, 1],
          ["SELECT 1", true, 2],
          ["SELECT generation", true, 3],
          ["SET record = $1", true, 4]
        ])
        yield* holding.release
      }))
  })

  describe.concurrent("late abandoned statements", () => {
    /** A replica whose statements can be kept back, on a clock that is put ahead until they are given up. */
    const held = Effect.gen(function*() {
      const clock = AheadClock.make()
      const holding = yield* Holding.make((yield* Database).url)
      const here = yield* Effect.provideService(replica({}, (sql) => sql, holding.url), Clock.Clock, clock)
      /** What comes of a call, one of whose statements is kept back. */
      const givenUp = <A, E>(call: Effect.Effect<A, E>) =>
        Effect.gen(function*() {
          const before = holding.held()
          const calling = yield* Effect.forkChild(Effect.provideService(call, Clock.Clock, clock))
          yield* until("it is kept back", Effect.sync(holding.held), (held) => held > before)
          clock.pass("3 seconds")
          return yield* Fiber.join(calling)
        })
      /** Waits for what the replica does by itself, and puts its clock ahead meanwhile. */
      const later = <A, E, R>(what: string, check: Effect.Effect<A, E, R>, holds: (value: A) => boolean) =>
        AheadClock.untilAhead(clock, "200 millis", what, check, holds)
      const pass = (time: Duration.Input) => Effect.sync(() => clock.pass(time))
      return { ...here, holding, givenUp, later, pass }
    })

    it.effect("a late take does not take a session from its new owner", () =>
      Effect.gen(function*() {
        const here = yield* held
        const { key } = yield* asleep(here)
        here.holding.holdFrom("SET generation =")
        assert.strictEqual((yield* Effect.flip(here.givenUp(here.take(key))))._tag, "RecordsUnreachable")
        assert.strictEqual(here.holding.held(), 1)
        const woken = yield* wake(here, key)
        yield* here.holding.release
        level(woken, "debug")
        const row = yield* here.later("it is written", rowOf(here.sql, key), (row) =>
          row?.record.includes("debug") === true)
        assert.deepStrictEqual([row?.generation, here.lost], [2, []])
      }))

    it.effect("a late write does not replace a newer record", () =>
      Effect.gen(function*() {
        const here = yield* held
        const { key, record } = yield* entered(here)
        here.holding.holdFrom("logging/setLevel")
        level(record, "info")
        yield* here.later("it is kept back", Effect.sync(here.holding.held), (held) => held === 1)
        level(record, "debug")
        const stored = (text: string) =>
          here.later("it is stored", rowOf(here.sql, key), (row) => row?.record.includes(text) === true)
        yield* stored("debug")
        yield* here.holding.release
        assert.include((yield* rowOf(here.sql, key))?.record, "debug")
        level(record, "error")
        yield* stored("error")
        assert.deepStrictEqual(here.lost, [])
      }))

    it.effect("a late write that takes effect does not end its session", () =>
      Effect.gen(function*() {
        const here = yield* held
        const { key, record } = yield* entered(here)
        here.holding.holdFrom("logging/setLevel")
        level(record, "info")
        yield* here.later("it is kept back", Effect.sync(here.holding.held), (held) => held === 1)
        yield* here.pass("3 seconds")
        yield* here.holding.release
        assert.include((yield* rowOf(here.sql, key))?.record, "info")
        // It is tried again, and what is said after it is written as well.
        level(record, "debug")
        yield* here.later("it is stored", rowOf(here.sql, key), (row) => row?.record.includes("debug") === true)
        assert.deepStrictEqual([here.lost, [...yield* here.keys]], [[], [key]])
      }))

    it.effect("a late first write does not enter a session that was removed since", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* held, yield* replica()]
        const { key, record } = session()
        here.holding.holdFrom(entry)
        yield* here.givenUp(here.enter(key, record))
        assert.strictEqual(here.holding.held(), 1)
        // A client may end its session twice.
        for (const each of [here, here, there]) yield* each.remove(key)
        yield* here.holding.release
        for (const each of [here, there]) {
          assert.isFalse(yield* each.has(key))
          yield* assertUnknown(each, key)
        }
      }))

    it.effect("a late first write does not enter a session that was entered, put to sleep and removed since", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* held, yield* replica()]
        const { key, record } = session()
        here.holding.holdFrom(entry)
        yield* here.givenUp(here.enter(key, record))
        assert.strictEqual(here.holding.held(), 1)
        yield* here.later("it is entered again", rowOf(there.sql, key), (row) => row !== undefined)
        yield* here.rest(key, record)
        yield* there.remove(key)
        yield* here.holding.release
        assert.isFalse(yield* there.has(key))
        yield* assertUnknown(there, key)
      }))
  })

  describe("rows of removed sessions", () => {
    it.effect("a removed session leaves a row for ten minutes that never wakes, and an unknown session leaves none", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* replica({ asleepTimeToLive: Duration.seconds(3) }), yield* replica()]
        const [ended, unknown] = [session(), session()]
        yield* there.enter(ended.key, ended.record)
        yield* here.enter(ended.key, ended.record)
        yield* there.remove(ended.key)
        yield* there.remove(unknown.key)
        const rows = ({ text }: Key) => here.sql`SELECT 1 FROM effect_session_pool_sessions WHERE key = ${text}`
        assert.lengthOf(yield* rows(ended.key), 1)
        assert.lengthOf(yield* rows(unknown.key), 0)
        yield* untilLost(here)
        assert.isFalse(yield* here.has(ended.key))
        const isRemoved = Effect.andThen(
          removalIsDue(here.sql),
          until("the expired session is removed", countsOf(here.sql), ({ expired }) => expired === undefined)
        )
        yield* manyAsleep(here.sql, "expired", 1, -1)
        yield* isRemoved
        assert.lengthOf(yield* rows(ended.key), 1, "its entry may still come")
        yield* here.sql`UPDATE effect_session_pool_sessions SET expires_at = expires_at - INTERVAL '10 minutes'`
        yield* isRemoved
        yield* until("its row is deleted", rows(ended.key), ({ length }) => length === 0)
      }))
  })

  describe("migrations", () => {
    it.effect("a migration waits for no reader of the table, such as a backup, and delays no other statement", () =>
      Effect.gen(function*() {
        const here = yield* replica()
        const { key } = yield* asleep(here)
        const reader = yield* (yield* client).reserve
        yield* Effect.acquireRelease(
          Effect.andThen(
            reader.executeRaw("BEGIN", []),
            reader.executeRaw("SELECT COUNT(*) FROM effect_session_pool_sessions", [])
          ),
          () => Effect.orDie(reader.executeRaw("COMMIT", []))
        )
        const starting = yield* Effect.forkChild(
          Effect.provideService(SleeperTable.migrate, SqlClient.SqlClient, here.sql)
        )
        assert.isTrue(Option.isSome(yield* here.take(key)))
        // While the other one still reads.
        yield* Fiber.join(starting)
      }).pipe(Effect.scoped))
  })

  describe("outages of the database", () => {
    it.effect("a session that is opened, put to sleep or removed during an outage is stored as such afterwards", () =>
      Effect.gen(function*() {
        const { start, stop } = yield* Database
        const [here, there] = [yield* replica(), yield* replica()]
        const [opened, rested, removed, removedAsleep] = [session(), session(), session(), session()]
        for (const { key, record } of [rested, removed, removedAsleep]) yield* here.enter(key, record)
        yield* here.rest(removedAsleep.key, removedAsleep.record)
        yield* stop
        yield* here.enter(opened.key, opened.record)
        for (const { record } of [opened, rested]) level(record, "debug")
        yield* here.rest(rested.key, rested.record)
        assert.strictEqual((yield* Effect.flip(here.take(rested.key)))._tag, "RecordsUnreachable")
        for (const { key } of [removed, removedAsleep]) {
          yield* here.remove(key)
          assert.isFalse(yield* here.has(key), "known without the database")
        }
        assert.deepStrictEqual([...yield* here.keys], [opened.key])
        yield* start
        // At once, before the replica writes it by itself.
        const found = yield* until("it wakes", Effect.option(here.take(rested.key)), Option.isSome)
        assert.strictEqual(levelOf(Option.flatten(found)), "debug")
        const row = yield* until("it is stored", rowOf(here.sql, opened.key), (row) => row !== undefined)
        assert.include(row?.record, "debug")
        for (const { key } of [removed, removedAsleep]) {
          yield* until("its row is removed", rowOf(here.sql, key), (row) => row === undefined)
          yield* assertUnknown(there, key)
        }
        assert.deepStrictEqual(here.lost, [])
      }))

    it.effect("an awake session is found during an outage, and is awake afterwards", () =>
      Effect.gen(function*() {
        const { start, stop } = yield* Database
        const here = yield* replica({ asleepTimeToLive: Duration.seconds(6) })
        const { key, record } = yield* entered(here)
        yield* stop
        assert.strictEqual(Option.getOrUndefined(yield* here.take(key)), record)
        yield* start
        yield* until(
          "its time can be taken away",
          Effect.option(
            here
              .sql`UPDATE effect_session_pool_sessions SET expires_at = expires_at - INTERVAL '1 hour' WHERE key = ${key.text}`
          ),
          Option.isSome
        )
        yield* until("its time has begun anew", hasTime(here.sql, key), (has) => has)
        assert.deepStrictEqual([...yield* here.keys], [key])
        assert.deepStrictEqual(here.lost, [])
      }))
  })

  describe("removals during an outage of the database", () => {
    it.effect("the newest ten thousand removals, and all removals of sessions that were awake here, survive an outage", () =>
      Effect.gen(function*() {
        const state = { isAway: false }
        const here = yield* replica({}, (sql) =>
          new Proxy(sql, {
            apply: (target, self, args) =>
              state.isAway ? Effect.fail(new Error("away")) : Reflect.apply(target, self, args)
          }))
        const [awake, asleep] = [session(), session()]
        for (const { key, record } of [awake, asleep]) yield* here.enter(key, record)
        yield* here.rest(asleep.key, asleep.record)
        const [first, ...made] = Array.from({ length: 20_000 }, () => session().key)
        state.isAway = true
        yield* here.remove(awake.key)
        // A client may send a made-up id twice.
        for (let i = 0; i < 2; i++) yield* here.remove(first ?? awake.key)
        yield* Effect.forEach(made.slice(0, 10_001), here.remove, { discard: true })
        yield* here.remove(asleep.key)
        yield* Effect.forEach(made.slice(10_001), here.remove, { discard: true })
        // What is to be removed is known without the database.
        const known = Effect.filter(
          [...made, first ?? awake.key],
          (key) => Effect.orElseSucceed(Effect.map(here.has(key), (has) => !has), () => false)
        )
        assert.deepStrictEqual(yield* known, made.slice(-9998))
        state.isAway = false
        for (const { key } of [awake, asleep]) {
          yield* until("it is gone", rowOf(here.sql, key), (row) => row === undefined)
        }
        const rows = yield* here.sql`SELECT key FROM effect_session_pool_sessions WHERE key = ${first?.text ?? ""}`
        assert.deepStrictEqual(rows, [])
      }))
  })

  describe("locked tables", () => {
    it.effect("a session that is opened while the table is locked is stored later", () =>
      Effect.gen(function*() {
        const clock = AheadClock.make()
        const here = yield* Effect.provideService(replica(), Clock.Clock, clock)
        const { key, record } = session()
        const entering = yield* whileLocked(Effect.gen(function*() {
          const entering = yield* Effect.forkDetach(here.enter(key, record))
          yield* waitsForLock(here)
          // Longer than it takes until what is pending is tried anew.
          clock.pass("1200 millis")
          return entering
        }))
        yield* Fiber.join(entering)
        yield* until("it is stored", rowOf(here.sql, key), (row) => row !== undefined)
        level(record, "debug")
        yield* untilWritten(here, key, "debug")
        assert.deepStrictEqual(here.lost, [])
        assert.strictEqual(Option.getOrUndefined(yield* here.take(key)), record)
      }))
  })

  describe("locked rows", () => {
    it.effect("a locked row does not block the writes of other sessions", () =>
      Effect.gen(function*() {
        const clock = AheadClock.make()
        const here = yield* Effect.provideService(replica(), Clock.Clock, clock)
        const [blocked, other] = [session(), session()]
        for (const { key, record } of [blocked, other]) yield* here.enter(key, record)
        const connection = yield* (yield* client).reserve
        yield* Effect.acquireRelease(
          Effect.andThen(
            connection.executeRaw("BEGIN", []),
            connection.executeRaw("SELECT 1 FROM effect_session_pool_sessions WHERE key = $1 FOR UPDATE", [
              blocked.key.text
            ])
          ),
          () => Effect.orDie(connection.executeRaw("COMMIT", []))
        )
        for (const { record } of [blocked, other]) level(record, "debug")
        // The statement that waits for the row is given up.
        const row = rowOf(here.sql, other.key)
        yield* AheadClock.untilAhead(clock, "200 millis", "it is written", row, (row) =>
          row?.record.includes("debug") === true)
      }).pipe(Effect.scoped))
  })

  describe("the limit of sleeping sessions", () => {
    it.effect("rows of removed sessions do not count towards the limit", () =>
      Effect.gen(function*() {
        const sql = yield* client
        yield* sql`DELETE FROM effect_session_pool_sessions`
        yield* manyAsleep(sql, "removed", 10, 500)
        yield* sql`UPDATE effect_session_pool_sessions SET record = ''`
        yield* manyAsleep(sql, "older", 5, 1000)
        yield* manyAsleep(sql, "newer", 10, 2000)
        yield* removalIsDue(sql)
        yield* replica({ maxAsleep: 12 })
        yield* until("as many are left as may be", countsOf(sql), ({ older }) => older !== 5)
        assert.deepStrictEqual(yield* countsOf(sql), { removed: 10, older: 2, newer: 10 })
      }))

    it.effect("as many sessions are removed as exceed the limit, though all expire at the same time", () =>
      Effect.gen(function*() {
        const sql = yield* client
        yield* sql`DELETE FROM effect_session_pool_sessions`
        yield* manyAsleep(sql, "same", 2500, 1000)
        yield* manyAsleep(sql, "later", 10, 2000)
        yield* removalIsDue(sql)
        yield* replica({ maxAsleep: 1010 })
        yield* until("as many are left as may be", countsOf(sql), ({ same }) => same !== undefined && same <= 1000)
        // Once more: then there is nothing to remove but what has expired.
        yield* manyAsleep(sql, "expired", 1, -1)
        yield* removalIsDue(sql)
        yield* replica({ maxAsleep: 1010 })
        yield* until("the expired session is removed", countsOf(sql), ({ expired }) => expired === undefined)
        assert.deepStrictEqual(yield* countsOf(sql), { same: 1000, later: 10 })
      }))
  })

  describe("the removal of expired sessions", () => {
    it.effect("one replica removes expired sessions, once a minute", () =>
      Effect.gen(function*() {
        const sql = yield* client
        yield* sql`DELETE FROM effect_session_pool_sessions`
        const asleep = { asleepTimeToLive: Duration.seconds(1) }
        const removed = (what: string) => until(what, countsOf(sql), ({ expired }) => expired === undefined)
        yield* manyAsleep(sql, "expired", 2500, -1)
        yield* removalIsDue(sql)
        /** How often each has asked. */
        const asked: Array<number> = []
        const start = () => {
          const i = asked.push(0) - 1
          return replica(
            asleep,
            observing((statement) => {
              if (statement.compile()[0].includes("effect_session_pool_upkeep")) asked[i] = (asked[i] ?? 0) + 1
            })
          )
        }
        const allAskAgain = Effect.suspend(() => {
          const before = [...asked]
          return until(
            "all have asked again",
            Effect.sync(() => asked),
            (now) => now.every((count, i) => count >= (before[i] ?? 0) + 2)
          )
        })
        yield* start()
        yield* removed("at once")
        yield* manyAsleep(sql, "expired", 1, -1)
        yield* start()
        yield* allAskAgain
        assert.deepStrictEqual(yield* countsOf(sql), { expired: 1 })
        yield* sql`UPDATE effect_session_pool_upkeep SET done_at = done_at - INTERVAL '1 minute'`
        yield* removed("by whichever asks first")
        yield* manyAsleep(sql, "expired", 1, -1)
        yield* allAskAgain
        assert.deepStrictEqual(yield* countsOf(sql), { expired: 1 })
        // The clock of the database was an hour ahead.
        yield* sql`UPDATE effect_session_pool_upkeep SET done_at = NOW() + INTERVAL '1 hour'`
        yield* removed("when the clock is right again")
      }))

    it.effect("a removal finds its rows by the index, and reads no others", () =>
      Effect.gen(function*() {
        const sql = yield* client
        yield* sql`DELETE FROM effect_session_pool_sessions`
        yield* manyAsleep(sql, "asleep", 20_000, 1000)
        yield* sql`ANALYZE effect_session_pool_sessions`
        const sent: Array<Statement.Statement<unknown>> = []
        const observed = observing((statement) => {
          if (statement.compile()[0].trim().startsWith("DELETE")) sent.push(statement)
        })
        yield* removalIsDue(sql)
        yield* replica({ maxAsleep: 19_990 }, observed)
        yield* until("they are removed", countsOf(sql), ({ asleep }) => asleep === 19_990)
        assert.strictEqual(sent.length, 2)
        for (const statement of sent) {
          const plan = yield* planOf(sql, statement)
          assert.include(plan, "using effect_session_pool_sessions_expires_at")
          assert.include(plan, "using effect_session_pool_sessions_pkey")
          assert.notInclude(plan, "Seq Scan")
        }
      }))
  })
})
