/**
 * The configuration, from three sources. The command line overrides the environment, which overrides a file. A file is the
 * `mcpServers` JSON that MCP clients use, plus an optional `gateway` object. One fault refuses the whole configuration; the
 * error lists every fault with its place and what is allowed there.
 */
import { Predicate, Schema } from "effect"
import type { GatewayConfig } from "../sessions/Registry.ts"
import * as Masking from "../settings/Masking.ts"
import * as Settings from "../settings/Settings.ts"
import * as Backends from "../transports/Backends.ts"
import type { Fault } from "../transports/Kinds.ts"
import * as CommandName from "./CommandName.ts"
import * as ConfigFile from "./ConfigFile.ts"
import * as Names from "./Names.ts"
import * as Variables from "./Variables.ts"

/** A checked configuration, with warnings about parts that are odd but not refused. */
export interface Loaded extends GatewayConfig {
  readonly warnings: ReadonlyArray<string>
}

/** The configuration is wrong. Each fault has its place and what is allowed there. */
export class InvalidConfig extends Schema.TaggedError<InvalidConfig>()("InvalidConfig", {
  faults: Schema.Array(Schema.String)
}) {
  override get message(): string {
    return ["The configuration is not valid:", ...this.faults.map((fault) => `  ${fault}`)].join("\n")
  }
}

export interface Sources {
  /** The settings from the command line, by name. */
  readonly flags: Readonly<Record<string, unknown>>
  readonly environment: Variables.Environment
  /** The name and text of the configuration file. */
  readonly file: { readonly name: string; readonly text: string } | undefined
  /** Back ends that come from the command line, not from a file. */
  readonly entries: Readonly<Record<string, Backends.Entry>>
}

/** Where faults and warnings go. */
interface Report {
  readonly fault: Fault
  readonly warn: (text: string) => void
}

/** Merges the sources and checks the result. */
export const load = ({ entries, environment, file, flags }: Sources): Loaded | InvalidConfig => {
  const faults = new Map<string, string>()
  const warnings: Array<string> = []
  const report: Report = {
    // A value with a fault in it cannot be judged, so a fault of the whole value would only repeat that.
    fault: (path, message) => {
      const isTold = [...faults.keys()].some((told) =>
        told === path || told.startsWith(`${path}.`) || told.startsWith(`${path}[`)
      )
      if (!isTold) faults.set(path, message)
    },
    warn: (text) => warnings.push(text)
  }
  const root = file === undefined ? {} : readRoot(file, report)
  unknownVariables(environment, file?.text ?? "", report)
  const secrets: Array<string> = []
  const own = record(root?.["gateway"] ?? {})
  if (own === undefined) report.fault("gateway", "must be an object")
  const written = readSettings("gateway", own ?? {}, Object.keys(Settings.all), environment, secrets, report.fault)
  const settings = settingsOf(written, environment, flags, report.fault)
  const served = file === undefined || root === undefined ? [] : readServers(root, environment, secrets, report)
  const backends = Backends.check([...Backends.given("", entries), ...served], settings, report.fault)
  return faults.size > 0
    ? new InvalidConfig({ faults: Array.from(faults, ([path, message]) => `${path}: ${message}`) })
    : { backends, settings, warnings }
}

/** The settings for all servers. The environment overrides the file, and the command line overrides both. */
const settingsOf = (
  file: Sources["flags"],
  environment: Variables.Environment,
  flags: Sources["flags"],
  fault: Fault
): Settings.GatewaySettings => {
  const tables = { ...Settings.backendSettings, ...Settings.gatewaySettings }
  const variables = Object.fromEntries(Object.keys(tables).map((name) => [name, variable(environment, name)]))
  const layers = [
    { input: file, path: (name: string) => `gateway.${name}` },
    { input: variables, path: Settings.variableName },
    { input: flags, path: (name: string) => `--${Settings.flagName(name)}` }
  ]
  return layers.reduce(
    (settings, { input, path }) =>
      Settings.decode(tables, input, settings, (name, message) => fault(path(name), message)),
    Settings.defaults(tables)
  )
}

/** The variable of a setting. An empty one counts as unset, but not for keys and TLS, which would then protect nothing. */
const variable = (environment: Variables.Environment, name: string): string | undefined => {
  const value = environment[Settings.variableName(name)]
  return value === "" && !Settings.protecting.includes(name) ? undefined : value
}

/** The names at the top of a file that the gateway reads. */
const rootNames = ["mcpServers", "gateway"]

/** Reads a file. Other names at its top are allowed, unless one probably stands for a missing name of the gateway. */
const readRoot = (file: { readonly name: string; readonly text: string }, { fault, warn }: Report) => {
  const read = ConfigFile.read(file.name, file.text, fault)
  if (read === undefined) return undefined
  const root = record(read)
  if (root === undefined) return void fault(file.name, "the file must be a JSON object")
  const missing = rootNames.filter((name) => !(name in root))
  const others = Object.keys(root).filter((name) => !rootNames.includes(name))
  const misnamed = others.flatMap((name) => {
    const meant = Names.meantBy(name, missing)
    return meant === undefined ? [] : [{ name, meant }]
  })
  for (const { meant, name } of misnamed) fault(Masking.printable(name), `unknown; did you mean ${meant}?`)
  if (record(root["mcpServers"]) === undefined && !misnamed.some(({ meant }) => meant === "mcpServers")) {
    fault("mcpServers", "must be an object of back ends by name")
  }
  const unread = others.filter((name) => !misnamed.some((each) => each.name === name))
    .map((name) => `"${Masking.printable(name)}"`)
  if (unread.length > 0) {
    warn(`${file.name}: the gateway does not read ${unread.join(", ")}; settings belong in "gateway"`)
  }
  return root
}

/** Reads the entries of a file that are not disabled. */
const readServers = (
  root: Readonly<Record<string, unknown>>,
  environment: Variables.Environment,
  secrets: ReadonlyArray<string>,
  report: Report
): ReadonlyArray<Backends.Unchecked> => {
  const servers = record(root["mcpServers"])
  if (servers === undefined) return []
  const served = Object.entries(servers).filter(([, value]) => record(value)?.["disabled"] !== true)
  if (served.length === 0) report.fault("mcpServers", "must have at least one back end that is not disabled")
  const names = new Set(served.map(([given]) => given).filter(Backends.isName))
  return served.flatMap(([given, written]) => {
    const path = `mcpServers.${Masking.printable(given)}`
    const name = Backends.isName(given) ? given : CommandName.urlSafe(given)
    if (name !== given && names.has(name)) {
      report.fault(path, `needs another name: another server already has "${name}" in its URL`)
    } else if (name !== given && name !== "") {
      report.warn(`${path}: served at /mcp/${name}, because ${Backends.allowedName}`)
    }
    names.add(name)
    const own = [...secrets]
    const entry = readEntry(path, written, environment, own, report)
    return entry === undefined ? [] : [{ path, name, entry, secrets: own, written }]
  })
}

/** Reads an entry as far as all kinds have it in common. `Backends.check` does the rest. */
const readEntry = (
  path: string,
  written: unknown,
  environment: Variables.Environment,
  secrets: Array<string>,
  { fault, warn }: Report
) => {
  const entry = record(written)
  if (entry === undefined) return void fault(path, "must be an object")
  for (const name of Object.keys(entry).filter((name) => Names.ofClients.includes(name))) {
    warn(`${path}.${name}: the gateway does not read it`)
  }
  const { disabled = false, ...read } = Object.fromEntries(
    Object.entries(entry).filter(([name]) => !Names.ofClients.includes(name))
  )
  if (typeof disabled !== "boolean") fault(`${path}.disabled`, "must be true or false")
  const allowed = [...Backends.namesOf(read), ...Object.keys(Settings.backendSettings)]
  return readSettings(path, read, allowed, environment, secrets, fault)
}

/** Replaces variables. Reports unknown names, and durations that are bare numbers and so do not tell their unit. */
const readSettings = (
  path: string,
  written: Readonly<Record<string, unknown>>,
  allowed: ReadonlyArray<string>,
  environment: Variables.Environment,
  secrets: Array<string>,
  fault: Fault
): Readonly<Record<string, unknown>> => {
  const known = Object.entries(written).filter(([name]) => allowed.includes(name))
  for (const name of Object.keys(written).filter((name) => !allowed.includes(name))) {
    const meant = Names.meantBy(name, allowed)
    const next = meant === undefined ? `allowed are ${allowed.join(", ")}` : `did you mean ${meant}?`
    fault(`${path}.${Masking.printable(name)}`, `unknown; ${next}`)
  }
  for (const [name, value] of known) {
    const setting = Object.hasOwn(Settings.all, name) ? Settings.all[name] : undefined
    if (setting?.kind === "duration" && typeof value !== "string") {
      fault(`${path}.${name}`, Settings.mustBe(setting, value))
    }
  }
  return Object.fromEntries(
    known.map(([name, value]) => [name, Variables.expand(`${path}.${name}`, value, environment, secrets, fault)])
  )
}

/** Variables that Kubernetes sets for a service, here for one whose name begins with `gateway`. */
const ofService = /_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP|SCTP)/

/** Warns of `GATEWAY_` variables that are no settings. They may be another program's, so they are not faults. */
const unknownVariables = (environment: Variables.Environment, file: string, { warn }: Report): void => {
  const known = Object.keys(Settings.all).map(Settings.variableName)
  const ofFile = Variables.namesIn(file)
  for (const name of Object.keys(environment)) {
    if (!name.startsWith(Settings.variableName("")) || known.includes(name)) continue
    if (ofFile.includes(name) || ofService.test(name)) continue
    const meant = Names.meantBy(name, known)
    const next = meant === undefined ? "--help lists the variables of the gateway" : `did you mean ${meant}?`
    warn(`${Masking.printable(name)}: unknown; ${next}`)
  }
}

const record = (value: unknown): { readonly [name: string]: unknown } | undefined =>
  Predicate.isObject(value) ? value : undefined
