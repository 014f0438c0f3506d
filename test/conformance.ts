/**
 * Runs the official conformance suites against a legacy stdio server: `npm run conformance`. The suite of the legacy revisions runs
 * directly and through the gateway, and each scenario is compared check by check. The suite of 2026-07-28 runs through the gateway only,
 * because the server itself does not speak that revision. Exits with 1 if a legacy scenario differs, or if a required scenario fails.
 */
import { spawn, spawnSync } from "node:child_process"
import type { ChildProcess } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Progress from "./kit/progress.ts"

const legacySuite = "@modelcontextprotocol/conformance@0.1.16"
const modernSuite = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
const fixture = new URL("./fixtures/conformance-server.ts", import.meta.url).pathname
const gateway = new URL("../src/gateway/bin.ts", import.meta.url).pathname

interface Check {
  readonly id: string
  readonly status: string
  readonly errorMessage?: string
}

const freePort = () =>
  new Promise<number>((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0))
    })
  })

const answers = async (url: string): Promise<void> => {
  for (let i = 0; i < 100; i++) {
    if (await fetch(url).then(() => true, () => false)) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error(`${url} does not answer`)
}

interface Run {
  /** The checks of each scenario, without those that only inform. */
  readonly scenarios: ReadonlyMap<string, ReadonlyArray<Check>>
  readonly said: string
}

const run = (suite: string, url: string, which: ReadonlyArray<string>): Run => {
  Progress.step(`${suite} at ${url}`)
  const directory = mkdtempSync(join(tmpdir(), "conformance-"))
  const args = ["exec", "--yes", `--package=${suite}`, "--", "conformance", "server", "--url", url, ...which]
  // The suite exits with 1 if any scenario fails. Its files say which.
  const { stdout } = spawnSync("npm", [...args, "-o", directory], { timeout: 300_000, encoding: "utf8" })
  const scenarios = new Map<string, ReadonlyArray<Check>>()
  for (const name of readdirSync(directory)) {
    const checks: ReadonlyArray<Check> = JSON.parse(readFileSync(join(directory, name, "checks.json"), "utf8"))
    const scenario = name.replace(/^server-(?=.*-\d{4}-)/, "").replace(/-\d{4}-\d\d-\d\dT.*$/, "")
    scenarios.set(scenario, checks.filter(({ status }) => status !== "INFO"))
  }
  rmSync(directory, { recursive: true })
  Progress.clear()
  return { scenarios, said: stdout }
}

/** Prints the result of the modern suite through the gateway, and returns the required scenarios that fail. */
const requirements = (revision: string, url: string): ReadonlyArray<string> => {
  const { said, scenarios } = run(modernSuite, url, ["--requirements", revision])
  const unscored = new Map([...said.matchAll(/^ {2}[✗✓] (\S+) \((.*)\)$/gm)].map(([, name = "", why]) => [name, why]))
  const failing: Array<string> = []
  console.log(`\n| scenario of ${revision} | through the gateway | required |\n|---|---|---|`)
  for (const [name, checks] of [...scenarios].toSorted()) {
    const why = unscored.get(name)
    if (why === undefined && checks.some(({ status }) => status === "FAILURE")) failing.push(name)
    console.log(`| ${name} | ${show(checks) || "-"} | ${why === undefined ? "yes" : `no: ${why}`} |`)
  }
  console.log(`\n${scenarios.size - unscored.size} required scenarios, ${failing.length} failing`)
  return scenarios.size - unscored.size < 30 ? [...failing, "too few scenarios have run"] : failing
}

const show = (checks: ReadonlyArray<Check>): string => {
  const count = (status: string) => checks.filter((check) => check.status === status).length
  const parts = [["SUCCESS", "passed"], ["FAILURE", "failed"], ["WARNING", "warned"]] as const
  return parts.filter(([status]) => count(status) > 0).map(([status, word]) => `${count(status)} ${word}`).join(", ")
}

const key = (checks: ReadonlyArray<Check>): string =>
  checks.map(({ id, status }) => `${id} ${status}`).toSorted().join()

const children: Array<ChildProcess> = []
const start = (args: ReadonlyArray<string>, env: Record<string, string>) => {
  children.push(spawn(process.execPath, args, { env: { ...process.env, ...env }, stdio: "ignore" }))
}

try {
  const [direct, through] = [await freePort(), await freePort()]
  start([fixture, "http"], { PORT: String(direct) })
  // The suite gives some calls half a second; a process may need longer to start.
  start([gateway, "--port", String(through), "--spares", "6", "--", process.execPath, fixture, "stdio"], {})
  await answers(`http://127.0.0.1:${direct}/mcp`)
  await answers(`http://127.0.0.1:${through}/health`)
  const results = [direct, through].map((port) =>
    run(legacySuite, `http://127.0.0.1:${port}/mcp`, ["--suite", "all"]).scenarios
  )
  const names = [...new Set(results.flatMap((result) => [...result.keys()]))].toSorted()
  const differing: Array<string> = []
  console.log("| scenario | the server itself | through the gateway | same |\n|---|---|---|---|")
  for (const name of names) {
    const [one = [], two = []] = results.map((result) => result.get(name) ?? [])
    // These scenarios judge how a transport streams an answer. The gateway answers with JSON, so some checks do not run. The checks that
    // run must pass.
    const own = name.startsWith("server-sse-") && two.every(({ status }) => status === "SUCCESS")
    const same = key(one) === key(two)
    if (!same && !own) differing.push(name)
    console.log(`| ${name} | ${show(one)} | ${show(two) || "-"} | ${same ? "yes" : own ? "answered as JSON" : "no"} |`)
  }
  console.log(`\n${names.length} scenarios, ${names.length - differing.length} the same`)
  for (const name of differing) {
    for (const [side, result] of [["itself", results[0]], ["gateway", results[1]]] as const) {
      for (const { errorMessage = "", id, status } of result?.get(name) ?? []) {
        console.log(name, side, id, status, errorMessage)
      }
    }
  }
  const failing = requirements("2026-07-28", `http://127.0.0.1:${through}/mcp`)
  console.log(failing.join("\n"))
  process.exitCode = names.length < 20 || differing.length + failing.length > 0 ? 1 : 0
} finally {
  for (const child of children) child.kill("SIGTERM")
}
