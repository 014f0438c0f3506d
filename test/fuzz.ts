/**
 * Fuzzes the gateway by a seed: `npm run fuzz [-- --seed 1 --http 75000 --config 25000]`. Sends well-formed and malformed
 * requests over raw sockets, and reads such configurations. A case whose answer is not allowed is printed with its number.
 * `npm run fuzz -- --seed 1 --case 4711` sends that request alone, and `--config-case 4711` reads that configuration alone.
 */
import { parseArgs } from "node:util"
import * as FuzzConfig from "./kit/fuzz/config.ts"
import * as FuzzHttp from "./kit/fuzz/http.ts"
import * as Progress from "./kit/progress.ts"

const text = (value: number) => ({ type: "string", default: String(value) }) as const
const { values } = parseArgs({
  options: {
    seed: text(Date.now() % 1_000_000),
    http: text(75_000),
    config: text(25_000),
    case: { type: "string" },
    "config-case": { type: "string" }
  }
})
const seed = Number(values.seed)
const [one, oneConfig] = [values.case, values["config-case"]]
const single = one !== undefined || oneConfig !== undefined
const counts = single
  ? { http: one === undefined ? 0 : 1, config: oneConfig === undefined ? 0 : 1 }
  : { http: Number(values.http), config: Number(values.config) }
console.log(`seed ${seed}: ${counts.http} requests, ${counts.config} configurations`)

const failures: Array<string> = []
const begun = Date.now()
const told = (line: string) => {
  Progress.clear()
  console.log(`${((Date.now() - begun) / 1000).toFixed(0)} s: ${line}`)
}

if (counts.config > 0) {
  Progress.step(`${counts.config} configurations`)
  const { failures: wrong, valid } = FuzzConfig.run(seed, Number(oneConfig ?? 0), counts.config)
  failures.push(...wrong)
  told(`${counts.config} configurations, ${valid} of them valid: ${wrong.length} failures`)
}
if (counts.http > 0) {
  const report = (done: number) => done % 5000 === 0 ? told(`${done} requests`) : Progress.step(`${done} requests`)
  const { cases, failures: wrong, statuses } = await FuzzHttp.run(seed, Number(one ?? 0), counts.http, report)
  failures.push(...wrong)
  told(`${cases} requests: ${wrong.length} failures; statuses ${JSON.stringify(statuses)}`)
}
for (const failure of failures.slice(0, 20)) console.log(`FAILURE ${failure}`)
console.log(failures.length === 0 ? "no failure" : `${failures.length} failures with seed ${seed}`)
process.exit(failures.length === 0 ? 0 : 1)
