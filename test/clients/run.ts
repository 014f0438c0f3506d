/**
 * The MCP clients that people use, each as npm has it, through a gateway in front of the official "everything" server:
 * `npm run clients [-- --silence 20] [--only @mastra/mcp]`. It prints what each of them did: lists the tools, calls one, waits for
 * a call that says nothing for 20 seconds, cancels a call and goes on, and is asked for a call after its session has ended.
 * Ends with 1 if any of that fails.
 *
 * Each client has a back end of its own, so that its sessions can be told from the others'. The clients begin one after the
 * other, because one waits only 3 seconds for its first answer, and all wait at the same time.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { chosen } from "../bench/only.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as OidcProvider from "../kit/gateway/oidcProvider.ts"
import { install } from "../kit/install.ts"
import * as Progress from "../kit/progress.ts"
import type { Connected, Subject } from "./clients.ts"

const { values } = parseArgs({
  options: {
    silence: { type: "string", default: "20" },
    only: { type: "string", multiple: true, default: [] }
  }
})
const silence = Number(values.silence)
/** Ends what hangs: longer than the time-out of any client here, which is 60 seconds at most. */
const patience = silence + 90

install(new URL(".", import.meta.url))
const { subjects } = await import("./clients.ts")
const asked = chosen(subjects, values.only)
const path = (subject: Subject) => `client-${subjects.indexOf(subject) + 1}`

const home = mkdtempSync(join(tmpdir(), "clients-"))
const config = join(home, "servers.json")
const everything = fileURLToPath(
  new URL("../../node_modules/@modelcontextprotocol/server-everything/dist/index.js", import.meta.url)
)
const mcpServers = Object.fromEntries(
  asked.map((subject) => [path(subject), { command: process.execPath, args: [everything] }])
)
writeFileSync(config, JSON.stringify({ mcpServers }))
const adminKey = "the-key-of-the-operator"
const authorizationServer = await OidcProvider.start()
// A token expires while its client waits for the silent call, so the client must renew it.
authorizationServer.lifetime = Math.ceil(silence / 2)
/** The gateway of clients that log in, and that of the others. */
const gateways = [["--auth-issuer", authorizationServer.issuer, "--auth-scopes", "mcp"], []].map((flags) =>
  Kit.run(["--port", "0", "--config", config, ...flags], { GATEWAY_ADMIN_KEYS: adminKey })
)

const operator = { headers: Kit.bearer(adminKey) }

interface Session {
  readonly id: string
  readonly backend: string
  readonly inFlight: number
}

/** The text of an error, short enough for a table. */
const textOf = (error: unknown): string => String(error).replace(/\s+/g, " ").replaceAll("|", "/").slice(0, 160)

const inTime = <A>(work: Promise<A>): Promise<A> => {
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(() => late.reject(new Error(`nothing within ${patience} seconds`)), patience * 1000)
  return Promise.race([work, late.promise]).finally(() => clearTimeout(timer))
}

let failures = 0
/** What happened: what the scenario says, or how it failed and after how many seconds. */
const outcome = async (scenario: () => Promise<string>): Promise<string> => {
  const started = performance.now()
  try {
    return await inTime(scenario())
  } catch (error) {
    failures++
    return `fails after ${((performance.now() - started) / 1000).toFixed(0)} s: ${textOf(error)}`
  }
}

const say = async (client: Connected): Promise<void> => {
  const answer = await client.call("echo", { message: "hello" })
  if (!answer.includes("Echo: hello")) throw new Error(`answered ${answer}`)
}

/** A call without a word until its end. */
const wait = (client: Connected, seconds: number, signal?: AbortSignal) =>
  client.call("trigger-long-running-operation", { duration: seconds, steps: 1 }, signal)

/** The trial of one client. */
const trial = (subject: Subject, origin: string) => {
  const url = `${origin}/mcp/${path(subject)}`
  const sessions = async (): Promise<ReadonlyArray<Session>> => {
    const response = await fetch(`${origin}/sessions`, operator)
    const seen: { readonly sessions: ReadonlyArray<Session> } = await response.json()
    return seen.sessions.filter(({ backend }) => backend === path(subject))
  }
  const running = async () => (await sessions()).some(({ inFlight }) => inFlight > 0)

  let client: Connected | undefined
  const connected = async () => client ??= await subject.connect(url, home)
  const close = async () => {
    await client?.close().catch(() => {})
    client = undefined
  }

  const list = async () => {
    const names = await (await connected()).list()
    if (!names.includes("echo")) throw new Error(`lists ${names}`)
    return "ok"
  }
  const call = async () => {
    await say(await connected())
    return "ok"
  }
  const silent = async () => {
    const answer = await wait(await connected(), silence)
    if (!answer.includes("completed")) throw new Error(`answered ${answer}`)
    return "ok"
  }
  const cancel = async () => {
    const user = await connected()
    const controller = new AbortController()
    const call = wait(user, 10 * patience, controller.signal).then(
      (answer) => {
        throw new Error(`answered ${answer}`)
      },
      () => {}
    )
    await Kit.eventually("the call runs", running)
    controller.abort()
    await call
    await say(user)
    const over = Kit.eventually("the call is over", async () => !(await running()), 10)
    return await over.then(() => "ok", () => "ok; the gateway still has the call after 10 s")
  }
  const recover = async () => {
    const user = await connected()
    for (const { id } of await sessions()) await fetch(`${origin}/sessions/${id}`, { ...operator, method: "DELETE" })
    let error = ""
    for (let failed = 0; failed < 3; failed++) {
      try {
        await say(user)
        return failed === 0 ? "by itself" : `by itself, after ${failed} failed: ${error}`
      } catch (cause) {
        error = textOf(cause)
      }
    }
    await close()
    await say(await connected())
    return `with a new client: ${error}`
  }

  return {
    begin: async () => [subject.name, subject.version, await outcome(list), await outcome(call)],
    goOn: async () => {
      const waited = await outcome(silent)
      // A client that gave up may be of no use any more.
      if (waited !== "ok") await close()
      const rest = [waited, await outcome(cancel), await outcome(recover)]
      await inTime(close()).catch(() => {})
      return rest
    }
  }
}

// What a client leaves uncaught is not the end of the others.
process.on("unhandledRejection", (error) => process.stderr.write(`unhandled: ${textOf(error)}\n`))
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130))
process.on("exit", () => rmSync(home, { recursive: true, force: true }))

const [guarded = "", open = ""] = await Promise.all(gateways.map(async (run) => new URL(await Kit.urlOf(run)).origin))
const rows: Array<Promise<ReadonlyArray<string>>> = []
for (const subject of asked) {
  process.stderr.write(`${subject.name} ${subject.version}\n`)
  const { begin, goOn } = trial(subject, subject.logsIn ? guarded : open)
  const first = await begin()
  rows.push(goOn().then((rest) => [...first, ...rest]))
}
let done = 0
for (const row of rows) void row.then(() => Progress.step(`${++done} of ${rows.length} clients are done`))
Progress.step(`waits for ${rows.length} clients`)
const table = await Promise.all(rows)
Progress.clear()
for (const { child } of gateways) child.kill("SIGTERM")
await Promise.all(gateways.map(({ exit }) => exit))
await authorizationServer.stop()
console.log(`Node ${process.version}, ${new Date().toISOString().slice(0, 10)}\n`)
console.log(
  `| client | version | list | call | silent for ${silence} s | cancel, go on | call after the session's end |`
)
console.log("|---|---|---|---|---|---|---|")
for (const row of table) console.log(`| ${row.join(" | ")} |`)
// Clients may leave timers and sockets.
process.exit(failures > 0 ? 1 : 0)
