/** The PostgreSQL of the cluster's tests, by itself: it must be above suspicion when a replica loses it. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Redacted, Scope } from "effect"
import { existsSync } from "node:fs"
import * as Postgres from "../kit/cluster/postgres.ts"
import { alive, eventually } from "../kit/gateway/gateway.ts"

describe("a PostgreSQL for a test", () => {
  it.live("keeps what it is given over a stop, is unreachable in between, and leaves neither process nor file", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const postgres = yield* Scope.provide(Postgres.make, scope)
      const first = postgres.pid() ?? 0
      const client = PgClient.layer({ url: Redacted.make(postgres.url), connectTimeout: "2 seconds" })
      const query = <A extends object>(text: string) =>
        Effect.provide(Effect.flatMap(PgClient.PgClient, (sql) => sql.unsafe<A>(text)), client)
      yield* query("create table kept (n int)")
      yield* query("insert into kept values (42)")

      yield* postgres.stop
      assert.isFalse(alive(first))
      assert.isTrue(Exit.isFailure(yield* Effect.exit(query("select 1"))))
      yield* postgres.start
      assert.deepStrictEqual(yield* query("select n from kept"), [{ n: 42 }])

      const second = postgres.pid() ?? 0
      assert.notStrictEqual(second, first)
      yield* Scope.close(scope, Exit.void)
      yield* Effect.promise(() => eventually("its process is gone", () => !alive(second)))
      assert.isFalse(existsSync(postgres.directory))
    }))
})
