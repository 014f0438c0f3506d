/** Random configuration files. Reading one never throws, and each fault has a path, is on one line and shows no secret. */
import { Effect, Option } from "effect"
import * as Config from "../../../src/gateway/app/Config.ts"
import * as Settings from "../../../src/gateway/settings/Settings.ts"
import * as Backends from "../../../src/gateway/transports/Backends.ts"
import { transports } from "../../../src/gateway/transports/Kinds.ts"
import type { Random } from "../random.ts"
import * as Random_ from "../random.ts"
import { damaged } from "./bodies.ts"

const secret = "s3cr3t-0123456789"

const strangeNames = ["a b", "ü", "a\n    at b", "\u001b[2J", "__proto__", "constructor", "", "x".repeat(300)]

/** Values of settings and of properties. Most suit a few of them only. */
const values: ReadonlyArray<unknown> = [1, 0, -1, 4096, 1e300, true, null, {}, [], [1], ["a", "b"], { a: "b" }, "", "a"]
  .concat(["5m", "30 minutes", "4 MiB", "auto", "debug", "http://h/", `http://u:${secret}@h/`, secret.repeat(2)])
  .concat(["${SET}", "${env:SET}", "${UNSET}", "${UNSET:-1}", "${input:key}", "\u0000", "\ud800"])

/** The values that each setting takes in a file, where a duration has a unit. */
const fitting = new Map(
  Object.entries<Settings.Setting<unknown, unknown>>({ ...Settings.authSettings, ...Settings.all }).map((
    [name, { decode, kind }]
  ) => [
    name,
    values.filter((value) => Option.isSome(decode(value)) && (kind !== "duration" || typeof value === "string"))
  ])
)

/** A value that a setting takes, or sometimes any value. */
const valueOf = (random: Random, name: string): unknown => {
  const taken = fitting.get(name) ?? []
  return random.pick(taken.length === 0 || random.chance(0.02) ? values : taken)
}

/** A few members with names of a list, sometimes with one that it does not have. */
const members = (random: Random, known: ReadonlyArray<string>): object =>
  Object.fromEntries(Array.from({ length: random.below(4) }, () => {
    const name = random.chance(0.02) ? random.pick(strangeNames) : random.pick(known)
    return [name, valueOf(random, name)]
  }))

const server = (random: Random): unknown => {
  if (random.chance(0.05)) return random.pick(values)
  const kind = random.pick(Object.values(transports))
  const properties = random.chance(0.2) ? members(random, Object.keys(kind.entry.fields)) : {}
  return {
    ...members(random, Object.keys(Settings.backendSettings)),
    ...properties,
    [kind.recognisedBy]: random.chance(0.95) ? "http://h/" : random.pick(values)
  }
}

/** The configuration of a seed with this number. */
export const make = (seed: number, index: number): string => {
  const random = Random_.ofCase(seed, index)
  if (random.chance(0.05)) {
    const [mcpServers, gateway] = [random.pick(values), random.pick(values)]
    return JSON.stringify(random.chance(0.5) ? { mcpServers, gateway } : mcpServers)
  }
  const names = ["one", "two", ...random.chance(0.05) ? [random.pick(strangeNames)] : []]
  const text = JSON.stringify({
    mcpServers: Object.fromEntries(names.map((name) => [name, server(random)])),
    gateway: {
      ...members(random, Object.keys(Settings.all).filter((name) => Settings.writtenName(name) === name)),
      ...random.chance(0.1) ? { auth: members(random, Object.keys(Settings.authSettings)) } : {}
    }
  })
  return random.chance(0.2) ? damaged(random, Buffer.from(text)).toString("utf8") : text
}

/** A fault or a warning: a path and a message, on one line. */
const told = /^\S.*: \S.*$/

/** Reads configurations in this process. Returns each failure, and the number of valid ones. */
export const run = (seed: number, from: number, count: number) => {
  const failures: Array<string> = []
  let valid = 0
  for (let index = from; index < from + count && failures.length <= 20; index++) {
    const text = make(seed, index)
    const fail = (reason: string) => failures.push(`configuration case ${index}: ${reason}\n  ${text.slice(0, 2000)}`)
    try {
      const file = { name: "file.json", text }
      const loading = Config.load({ flags: {}, environment: { SET: secret }, file, entries: {} })
      const read = Effect.runSync(Effect.catch(loading, Effect.succeed))
      const isValid = !(read instanceof Backends.InvalidGatewayOptions)
      const messages = isValid ? read.warnings : read.faults
      if (isValid) valid++
      else if (messages.length === 0) fail("it is refused without a fault")
      const unfit = messages.find((message) => !told.test(message) || message.includes(secret))
      if (unfit !== undefined) fail(`it says ${JSON.stringify(unfit)}`)
    } catch (error) {
      fail(`it throws ${error instanceof Error ? error.stack : String(error)}`)
    }
  }
  return { failures, valid }
}
