/**
 * Gateways that share their sessions, as real processes: a PostgreSQL, the replicas, a cutter before each for the connections
 * of the others, and a balancer before all.
 */
import { Effect, Exit, Scope } from "effect"
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Gateway from "../gateway/gateway.ts"
import * as Balancer from "./balancer.ts"
import * as Cutter from "./cutter.ts"
import { stablePort } from "./ports.ts"
import * as Postgres from "./postgres.ts"

export interface Options {
  /** As in `mcpServers`. */
  readonly backends: Readonly<Record<string, object>>
  readonly flags?: ReadonlyArray<string>
  /** 3 unless told. */
  readonly count?: number
  readonly balancing?: Balancer.Options
  /** Plain gateways that know nothing of each other, without a database, for benchmarks. */
  readonly alone?: boolean
}

export interface Replica {
  readonly origin: string
  /** Before the address at which the others reach it. */
  readonly cutter: Cutter.Cutter
  readonly pid: () => number
  /** Starts it unless it runs, in the same place as before, and waits until it is ready. */
  readonly start: () => Promise<void>
  /** Sends a signal and waits until the process is gone; its exit code. */
  readonly stop: (signal?: NodeJS.Signals) => Promise<number | null>
  /** Sends a signal, and waits for nothing. */
  readonly signal: (signal: NodeJS.Signals) => void
  /** What `/ready` says, with its status; 0 if the replica does not answer. */
  readonly readiness: () => Promise<Readiness>
  /** The end of what it has written since it was started last. */
  readonly tail: () => string
}

export interface Readiness {
  readonly http: number
  readonly status?: string
  readonly cluster?: { readonly replica?: string; readonly database?: string }
}

export interface Cluster {
  readonly replicas: ReadonlyArray<Replica>
  readonly balancer: Balancer.Balancer
  readonly postgres: Postgres.Postgres | undefined
  /** Has every replica read the file again, with other back ends in it, and waits until they have. */
  readonly reload: (backends: Options["backends"]) => Promise<void>
  /** All processes of the replicas and their back ends. */
  readonly processes: () => ReadonlyArray<number>
  /** Stops all; fails when a replica does not leave by itself or leaves a process. */
  readonly stop: () => Promise<void>
}

/** Longest that a replica may need to be ready, and to leave. They are bounds for hanging ones, no measure. */
const seconds = { ready: 60, leave: 40 }

/** After this the sessions of a replica that is gone are given up. */
export const lockExpirationSeconds = 9

export const start = async (options: Options): Promise<Cluster> => {
  const scope = Effect.runSync(Scope.make())
  const directory = mkdtempSync(join(tmpdir(), "replicas-"))
  // In the environment of every process: those that lost their parent are found by it.
  const mark = `replicas-${process.pid}-${Math.random()}`
  const file = join(directory, "servers.json")
  configure(file, mark, options.backends)
  const postgres = options.alone === true
    ? undefined
    : await Effect.runPromise(Scope.provide(Postgres.make, scope))
  const environment = {
    REPLICAS_MARK: mark,
    GATEWAY_STATE_KEY: "the same key on every one of the replicas",
    ...(postgres === undefined ? {} : { DATABASE_URL: postgres.url })
  }
  const replicas: Array<Replica> = []
  for (let i = 0; i < (options.count ?? 3); i++) {
    const [port, told, own] = [await stablePort(), await stablePort(), await stablePort()]
    const joining = postgres === undefined ? [] : [
      "--cluster",
      `--replica-address=127.0.0.1:${told}`,
      `--replica-listen=127.0.0.1:${own}`,
      `--shard-lock-expiration=${lockExpirationSeconds} seconds`
    ]
    replicas.push(make({
      args: ["--port", String(port), "--config", file, ...joining, ...options.flags ?? []],
      environment,
      origin: `http://127.0.0.1:${port}`,
      // Alone, there is nothing else to forward to.
      cutter: await Cutter.start(told, postgres === undefined ? port : own)
    }))
  }
  const processes = () => withMark(mark)
  const reload = async (backends: Options["backends"]) => {
    configure(file, mark, backends)
    const times = () => replicas.map((replica) => replica.tail().split(/\breloaded\b/).length)
    const before = times()
    for (const replica of replicas) replica.signal("SIGHUP")
    await Gateway.eventually("all have reloaded", () => times().every((count, i) => count > (before[i] ?? 0)))
  }
  const stop = async (balancer?: Balancer.Balancer) => {
    await balancer?.stop()
    for (const replica of replicas) replica.signal("SIGCONT")
    const codes = await Promise.allSettled(replicas.map((replica) => replica.stop()))
    for (const replica of replicas) await replica.cutter.stop()
    await Effect.runPromise(Scope.close(scope, Exit.void))
    rmSync(directory, { recursive: true, force: true })
    for (const code of codes) if (code.status === "rejected") throw code.reason
    await Gateway.eventually("no process is left", () => processes().length === 0, 15).catch((error: unknown) => {
      const left = processes()
      for (const pid of left) Gateway.kill(pid, "SIGKILL")
      throw new Error(`${left.length} processes are left`, { cause: error })
    })
  }
  try {
    await Promise.all(replicas.map((replica) => replica.start()))
    const balancer = await Balancer.start(replicas.map(({ origin }) => origin), options.balancing)
    return { replicas, balancer, postgres, reload, processes, stop: () => stop(balancer) }
  } catch (error) {
    for (const replica of replicas) replica.signal("SIGKILL")
    await stop().catch(() => undefined)
    throw error
  }
}

const configure = (file: string, mark: string, backends: Options["backends"]) =>
  writeFileSync(
    file,
    JSON.stringify({
      mcpServers: Object.fromEntries(
        Object.entries(backends).map(([name, entry]) => [name, { ...entry, env: { REPLICAS_MARK: mark } }])
      )
    })
  )

interface Parts extends Pick<Replica, "origin" | "cutter"> {
  readonly args: ReadonlyArray<string>
  readonly environment: Record<string, string>
}

const make = ({ args, environment, ...parts }: Parts): Replica => {
  let run: Gateway.Run | undefined
  let exited = true
  const tail = () => run?.output().slice(-3000) ?? "never started"
  const signal = (signal: NodeJS.Signals) => {
    if (!exited) run?.child.kill(signal)
  }
  const readiness = (): Promise<Readiness> =>
    fetch(`${parts.origin}/ready`, { signal: AbortSignal.timeout(2000) }).then(
      async (response) => ({ ...await response.json(), http: response.status }),
      () => ({ http: 0 })
    )
  return {
    ...parts,
    pid: () => run?.child.pid ?? 0,
    tail,
    signal,
    readiness,
    start: async () => {
      if (exited || run === undefined) {
        run = Gateway.run(args, environment)
        exited = false
        void run.exit.then(() => {
          exited = true
        })
      }
      const { child } = run
      let last: Readiness = { http: 0 }
      await Gateway.eventually("the replica is ready", async () => {
        if (exited) throw new Error(`the replica has ended with ${child.exitCode}:\n${tail()}`)
        last = await readiness()
        return last.http === 200
      }, seconds.ready).catch((error: unknown) => {
        throw new Error(`a replica is not ready; it says ${JSON.stringify(last)} and has written:\n${tail()}`, {
          cause: error
        })
      })
    },
    stop: async (name = "SIGTERM") => {
      if (run === undefined) return null
      const { child, exit } = run
      if (!exited) child.kill(name)
      let timer: NodeJS.Timeout | undefined
      const late = new Promise<never>((_, reject) => {
        timer = setTimeout(() => {
          child.kill("SIGKILL")
          reject(new Error(`a replica has not left ${seconds.leave} seconds after ${name}:\n${tail()}`))
        }, seconds.leave * 1000)
      })
      return Promise.race([exit, late]).finally(() => clearTimeout(timer))
    }
  }
}

const withMark = (mark: string): ReadonlyArray<number> =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/environ`, "latin1").includes(mark) && Gateway.alive(pid)
    } catch {
      return false
    }
  })
