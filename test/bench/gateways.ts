/** The gateways of the benchmark: how each starts, what its process uses, and how it ends with all its processes. */
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import { readdirSync, readFileSync } from "node:fs"
import { connect, createServer } from "node:net"
import * as Kit from "../kit/gateway/gateway.ts"

/** The command of an MCP server on stdio. */
export interface Backend {
  readonly command: string
  readonly args: ReadonlyArray<string>
}

export interface Subject {
  readonly name: string
  /** The arguments of Node. */
  readonly arguments: (port: number, backend: Backend, spares: number) => ReadonlyArray<string>
  readonly path: string
}

const here = (path: string) => new URL(path, import.meta.url).pathname
/** As the package has it (built by `npm run bench:gateway`), with the option of Node that the README recommends. */
export const ours: Subject = {
  name: "effect-session-pool",
  arguments: (port, { args, command }, spares) => [
    "--max-semi-space-size=8",
    here("../../dist/gateway/bin.js"),
    `--port=${port}`,
    `--spares=${spares}`,
    "--",
    command,
    ...args
  ],
  path: "/mcp"
}

export const limit: Subject = {
  name: "bare bridge (the limit)",
  arguments: (port, { args, command }) => [here("bare.ts"), String(port), command, ...args],
  path: "/mcp"
}

/** The cost of any bridge that uses Effect's router and server. */
export const floor: Subject = {
  name: "effect/http floor",
  arguments: (port, { args, command }) => [here("effectHttp.ts"), String(port), command, ...args],
  path: "/mcp"
}

/** The same bridge in two processes: `front` gets the calls of clients and forwards them, `back` answers. */
export const forwardingFloor = {
  back: {
    name: "effect/rpc floor, back",
    arguments: (port, { args, command }) => [here("effectForward.ts"), "back", String(port), command, ...args],
    path: ""
  },
  front: (back: Gateway): Subject => ({
    name: "effect/rpc floor, front",
    arguments: (port) => [here("effectForward.ts"), "front", String(port), new URL(back.url).port],
    path: "/mcp"
  })
} satisfies { readonly back: Subject; readonly front: (back: Gateway) => Subject }

const supergateway: Subject = {
  name: "supergateway",
  // Its logging would write every message, and is on by default.
  arguments: (port, { args, command }) => [
    here("node_modules/supergateway/dist/index.js"),
    `--stdio=${[command, ...args].join(" ")}`,
    "--outputTransport=streamableHttp",
    "--stateful",
    `--port=${port}`,
    "--logLevel=none"
  ],
  path: "/mcp"
}

const mcpProxy: Subject = {
  name: "mcp-proxy",
  arguments: (port, { args, command }) => [
    here("node_modules/mcp-proxy/dist/bin/mcp-proxy.mjs"),
    "--host=127.0.0.1",
    `--port=${port}`,
    "--server=stream",
    "--",
    command,
    ...args
  ],
  path: "/mcp"
}

export const subjects: ReadonlyArray<Subject> = [ours, limit, supergateway, mcpProxy]
/** The subjects of cases that measure calls: the same with the floor. */
export const callSubjects: ReadonlyArray<Subject> = [ours, limit, floor, supergateway, mcpProxy]

export interface Gateway {
  readonly url: string
  /** CPU of the gateway's own process, in microseconds. */
  readonly cpuMicros: () => number
  /** Resident memory of the gateway's own process, in MiB. */
  readonly residentMiB: () => number
  readonly stop: () => Promise<void>
}

const started = new Set<ChildProcess>()

export const start = async (subject: Subject, backend: Backend, spares = 0): Promise<Gateway> => {
  const port = await freePort()
  const child = spawn(process.execPath, subject.arguments(port, backend, spares), {
    stdio: ["ignore", "ignore", "pipe"]
  })
  started.add(child)
  let errors = ""
  child.stderr.on("data", (chunk) => {
    errors = (errors + chunk).slice(-2000)
  })
  const exit = new Promise<void>((resolve) => child.once("exit", () => resolve()))
  const pid = child.pid ?? 0
  await Kit.eventually(`${subject.name} listens`, () => listens(port), 60).catch((cause) => {
    throw new Error(`${subject.name} does not start. Its last errors: ${errors}`, { cause })
  })
  return {
    url: `http://127.0.0.1:${port}${subject.path}`,
    cpuMicros: () => cpuMicros(pid),
    residentMiB: () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024,
    stop: async () => {
      const descendants = descendantsOf(pid)
      child.kill("SIGTERM")
      await Promise.race([exit, new Promise((resolve) => setTimeout(resolve, 20_000).unref())])
      child.kill("SIGKILL")
      // A gateway that leaves processes behind must not disturb the next one.
      for (const left of descendants) Kit.kill(left, "SIGKILL")
      await exit
      started.delete(child)
    }
  }
}

/** Kills all gateways and their processes, for an exit before `stop`. */
export const endAll = (): void => {
  for (const child of started) {
    const descendants = descendantsOf(child.pid ?? 0)
    child.kill("SIGKILL")
    for (const left of descendants) Kit.kill(left, "SIGKILL")
  }
}

const ticksPerSecond = 100

/** CPU of all threads of a process, without its children. */
const cpuMicros = (pid: number): number => {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8")
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ").map(Number)
  return ((fields[11] ?? 0) + (fields[12] ?? 0)) / ticksPerSecond * 1e6
}

const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => resolve(typeof address === "object" ? address?.port ?? 0 : 0))
    })
  })

const listens = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => {
      socket.destroy()
      resolve(true)
    }).on("error", () => resolve(false))
  })

/** Finds descendants in one pass over the process table, because there may be a thousand. */
const descendantsOf = (ancestor: number): ReadonlyArray<number> => {
  const children = Map.groupBy(readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number), parentOf)
  const below = (pid: number): ReadonlyArray<number> =>
    (children.get(pid) ?? []).flatMap((child) => [child, ...below(child)])
  return below(ancestor)
}

const parentOf = (pid: number): number => {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8")
    return Number(text.slice(text.lastIndexOf(")") + 2).split(" ")[1])
  } catch {
    // The process has ended since.
    return -1
  }
}
