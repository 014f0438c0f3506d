/** Types the commands of the cluster's manual at a terminal: two replicas on one machine. */
import { Effect, Exit, Scope } from "effect"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import { mkdtempSync, readFileSync, realpathSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import { stablePort } from "../kit/cluster/ports.ts"
import * as Postgres from "../kit/cluster/postgres.ts"
import * as Documents from "../kit/documents.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { areInstalled, pathWithCurl } from "../kit/programs.ts"

const manual = "src/gateway/cluster/README.md"
const root = new URL("../..", import.meta.url).pathname
const folder = realpathSync(mkdtempSync(join(tmpdir(), "two-replicas-")))
const scope = Scope.makeUnsafe()
const started = new Set<number>()
let terminal: ChildProcess
let output = ""
const type = (line: string) => terminal.stdin?.write(`${line}\n`)
/** What the terminal's shell has started, and is not gone. */
const processes = (): ReadonlyArray<number> => {
  const [shell = 0] = Kit.children(terminal.pid ?? 0)
  for (const pid of Kit.descendants(shell)) started.add(pid)
  return [...started].filter(Kit.alive)
}

beforeAll(() => {
  // `script` hands this to $SHELL or sh, which may stay in between: then the shell that is typed at would count as started.
  terminal = spawn("script", ["-qec", "exec bash --norc -i", "/dev/null"], {
    cwd: root,
    env: { ...process.env, PATH: pathWithCurl(), HISTFILE: join(folder, "history") }
  })
  for (const stream of [terminal.stdout, terminal.stderr]) {
    stream?.on("data", (chunk) => {
      output += chunk
    })
  }
})
afterAll(async () => {
  for (const pid of processes()) Kit.kill(pid, "SIGKILL")
  type("exit")
  await new Promise((resolve) => terminal.exitCode === null ? terminal.once("close", resolve) : resolve(0))
  await Effect.runPromise(Scope.close(scope, Exit.void))
  rmSync(folder, { recursive: true })
})

describe.skipIf(!areInstalled("openssl"))("the cluster's manual", () => {
  const commands = Documents.block(manual, "sh", "--cluster").trimEnd().split("\n")
  /** Opens a session at one, and uses it at the other. */
  const asking = Documents.block(manual, "sh", "8430/mcp").trimEnd().split("\n")
  /** What is other here than there: ports that are free, the database's too, and where the file is. */
  const replaced = new Map([["everything.json", join(folder, "everything.json")]])
  const here = (text: string) =>
    // All at once: a port that is free here may hold the digits of another.
    text.replace(new RegExp([...replaced.keys()].join("|"), "g"), (there) => replaced.get(there) ?? there)

  beforeAll(async () => {
    const { url } = await Effect.runPromise(Scope.provide(Postgres.make, scope))
    replaced.set(":5432", `:${new URL(url).port}`)
    for (const port of ["8420", "8421", "8430", "8431"]) replaced.set(port, String(await stablePort()))
  })

  it(
    "the commands of the manual start two replicas that serve each other's sessions, and stop both without a trace",
    async () => {
      assert.lengthOf(commands, 6)
      const [wait = "", ask = ""] = commands.at(-1)?.split("; ") ?? []
      assert.strictEqual(wait, "sleep 10")
      for (const command of commands.slice(0, -1)) type(here(command))
      // How long it takes is not for a busy machine to say: as soon as the answer is what is promised, instead of later.
      const promised = /"status":"ready".*"others":\["r[0-9a-f]{10}"\]/
      await Kit.eventually("the second replica is ready and knows the first", () => {
        type(here(ask))
        return new Promise((resolve) => setTimeout(() => resolve(promised.test(output)), 250))
      }, 60).catch((error: unknown) => {
        throw new Error(output, { cause: error })
      })

      assert.lengthOf(asking, 3)
      for (const line of asking) type(here(line))
      await Kit.eventually(
        "a session that was opened at one lists its tools at the other",
        () => /"id":2\b.*"name":"echo"|"name":"echo".*"id":2\b/.test(output),
        60
      ).catch((error: unknown) => {
        throw new Error(output, { cause: error })
      })
      const at = (port: string) => here(`http://127.0.0.1:${port}/mcp/everything`)
      const elsewhere = await Kit.open(at("8430"))
      assert.include(await Kit.toolText(at("8420"), elsewhere, "echo", { message: "hither" }), "hither")

      assert.isAtLeast(processes().length, 4)
      const stop = Documents.block(manual, "sh", "kill ").trim()
      type(stop)
      // As long as the files in `deploy/` give a replica to stop.
      await Kit.eventually(`"${stop}" has stopped both`, () => processes().length === 0, 40).catch((error: unknown) => {
        throw new Error(
          `still running: ${
            processes().map((pid) => readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ")).join("; ")
          }\n${output}`,
          { cause: error }
        )
      })
    },
    120_000
  )
})
