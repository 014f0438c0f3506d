/** Signals to a replica that has read its file and is not up yet. */
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as MigrationLock from "../../src/gateway/cluster/MigrationLock.ts"
import { stablePort } from "../kit/cluster/ports.ts"
import * as Postgres from "../kit/cluster/postgres.ts"
import * as Kit from "../kit/gateway/gateway.ts"

/** Starts a replica that waits for the migration lock. `unlock` releases the lock. */
const waiting = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
  const { url } = yield* Postgres.make
  const sql = Context.get(yield* Layer.build(PgClient.layer({ url: Redacted.make(url) })), SqlClient.SqlClient)
  const connection = yield* sql.reserve
  yield* connection.executeRaw(`SELECT pg_advisory_lock(${MigrationLock.lock})`, [])
  const port = yield* Effect.promise(stablePort)
  const gateway = Kit.run(
    ["--port", "0", "--cluster", "--replica-address", `127.0.0.1:${port}`, ...args],
    { DATABASE_URL: url, GATEWAY_STATE_KEY: "the same key on every one of the replicas" }
  )
  yield* Effect.promise(() =>
    Kit.eventually("it waits for the lock", () => gateway.output().includes("Another replica creates the tables"))
  )
  return { gateway, unlock: connection.executeRaw(`SELECT pg_advisory_unlock(${MigrationLock.lock})`, []) }
})

describe("the start of a replica", () => {
  it.live("a replica that waits for the migration lock reloads its file after a SIGHUP", () =>
    Effect.gen(function*() {
      const folder = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "start-"))),
        (folder) => Effect.sync(() => rmSync(folder, { recursive: true }))
      )
      const file = join(folder, "servers.json")
      const write = (...names: ReadonlyArray<string>) =>
        writeFileSync(
          file,
          JSON.stringify({ mcpServers: Object.fromEntries(names.map((name) => [name, Kit.counter()])) })
        )
      write("first")
      const { gateway, unlock } = yield* waiting("--config", file)
      write("first", "second")
      // Without a listener, the signal ends the gateway.
      gateway.child.kill("SIGHUP")
      assert.notInclude(gateway.output(), "The gateway is up")
      yield* unlock
      const first = yield* Effect.promise(() => Kit.urlOf(gateway))
      yield* Effect.promise(() =>
        Kit.eventually("it serves the new file", async () => {
          const response = await fetch(new URL("/mcp/second", first), { method: "POST", body: "{" })
          await response.text()
          return response.status !== 404
        })
      )
      gateway.child.kill("SIGTERM")
      assert.strictEqual(yield* Effect.promise(() => gateway.exit), 0)
    }), 60_000)

  it.live("a replica that waits for the migration lock ends at once after a SIGTERM", () =>
    Effect.gen(function*() {
      const { gateway } = yield* waiting("--", "sleep", "1000")
      gateway.child.kill("SIGTERM")
      assert.strictEqual(yield* Effect.promise(() => gateway.exit), 0)
    }), 30_000)
})
