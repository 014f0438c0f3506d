/**
 * The configuration, from three sources. The command line overrides the environment, which overrides a file. A file is the
 * `mcpServers` JSON that MCP clients use, plus an optional `gateway` object. One fault refuses the whole configuration; the
 * error lists every fault with its place and what is allowed there.
 */
import type { Effect } from "effect"
import { Predicate, Record } from "effect"
import * as Checks from "../auth/Checks.ts"
import type { GatewayConfig } from "../sessions/State.ts"
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

export interface Sources {
  /** The settings from the command line, by name. */
  readonly flags: Values
  readonly environment: Variables.Environment
  /** The name and text of the configuration file. */
  readonly file: { readonly name: string; readonly text: string } | undefined
  /** Back ends that come from the command line, not from a file. */
  readonly entries: Readonly<Record<string, Backends.Entry>>
}

type Values = Readonly<Record<string, unknown>>

/** What the functions that read the file share. */
interface Reading extends Variables.Reading {
  readonly warn: (text: string) => void
}

/** Merges the sources and checks the result. */
export const load = (
  { entries, environment, file, flags }: Sources
): Effect.Effect<Loaded, Backends.InvalidGatewayOptions> =>
  Backends.validated((fault) => {
    const warnings: Array<string> = []
    const reading: Reading = { environment, secrets: [], fault, warn: (text) => warnings.push(text) }
    const root = file === undefined ? {} : readRoot(file, reading)
    unknownVariables(file?.text ?? "", reading)
    const written = readGateway(root?.["gateway"] ?? {}, reading)
    const settings = settingsOf(written, environment, flags, fault)
    const served = readServers(record(root?.["mcpServers"]), reading)
    const backends = Backends.check([...Backends.given("", entries), ...served], settings, fault)
    const { auth } = record(root?.["gateway"]) ?? {}
    Checks.check(settings, auth, backends, (path, message) => fault(`gateway.${path}`, message))
    return { backends, settings, warnings }
  })

/** The settings for all servers. The environment overrides the file, and the command line overrides both. */
const settingsOf = (file: Values, environment: Variables.Environment, flags: Values, fault: Fault) => {
  const decode = (input: Values, path: (name: string) => string, base?: Settings.GatewaySettings) =>
    Settings.decode(Settings.all, input, (name, message) => fault(path(name), message), base)
  const variables = Record.map(Settings.all, (_, name) => variable(environment, name))
  const ofFile = decode(file, (name) => `gateway.${Settings.writtenName(name)}`)
  const ofEnvironment = decode(variables, Settings.variableName, ofFile)
  return decode(flags, (name) => `--${Settings.flagName(name)}`, ofEnvironment)
}

/** The variable of a setting. An empty one counts as unset, but not for keys and TLS, which would then protect nothing. */
const variable = (environment: Variables.Environment, name: string): string | undefined => {
  const value = environment[Settings.variableName(name)]
  return value === "" && !Settings.protecting.includes(name) ? undefined : value
}

/** The names at the top of a file that the gateway reads. */
const rootNames = ["mcpServers", "gateway"]

/** Reads a file. Other names at its top are allowed, unless one probably stands for a missing name of the gateway. */
const readRoot = (file: { readonly name: string; readonly text: string }, { fault, warn }: Reading) => {
  const read = ConfigFile.read(file.name, file.text, fault)
  if (read === undefined) return undefined
  const root = record(read)
  if (root === undefined) return void fault(file.name, "the file must be a JSON object")
  const missing = rootNames.filter((name) => !(name in root))
  const others = Map.groupBy(
    Object.keys(root).filter((name) => !rootNames.includes(name)),
    (name) => Names.meantBy(name, missing)
  )
  for (const meant of missing) {
    for (const name of others.get(meant) ?? []) fault(Masking.printable(name), `unknown; did you mean ${meant}?`)
  }
  if (record(root["mcpServers"]) === undefined && !others.has("mcpServers")) {
    fault("mcpServers", "must be an object of back ends by name")
  }
  const unread = others.get(undefined)?.map((name) => `"${Masking.printable(name)}"`)
  if (unread !== undefined) {
    warn(`${file.name}: the gateway does not read ${unread.join(", ")}; settings belong in "gateway"`)
  }
  return root
}

/** Reads the object `gateway` of a file, and the object `auth` in it. */
const readGateway = (value: unknown, reading: Reading): Values => {
  const own = record(value)
  if (own === undefined) reading.fault("gateway", "must be an object")
  const { auth: ofAuth = {}, ...others } = own ?? {}
  const auth = record(ofAuth)
  if (auth === undefined) reading.fault("gateway.auth", "must be an object")
  const allowed = Object.keys(Settings.all).filter((name) => Settings.writtenName(name) === name)
  return Settings.flat({
    ...readSettings("gateway", others, [...allowed, "auth"], [], reading),
    auth: readSettings("gateway.auth", auth ?? {}, Object.keys(Settings.authSettings), [], reading)
  })
}

/** Reads the entries of a file that are not disabled. */
const readServers = (servers: Values | undefined, reading: Reading): ReadonlyArray<Backends.Unchecked> => {
  if (servers === undefined) return []
  const served = Object.entries(servers).filter(([, value]) => record(value)?.["disabled"] !== true)
  if (served.length === 0) reading.fault("mcpServers", "must have at least one back end that is not disabled")
  const names = new Set(served.map(([given]) => given).filter(Backends.isName))
  return served.flatMap(([given, written]) => {
    const path = `mcpServers${Masking.member(given)}`
    const name = Backends.isName(given) ? given : CommandName.urlSafe(given)
    if (name !== given && names.has(name)) {
      reading.fault(path, `needs another name: another server already has "${name}" in its URL`)
    } else if (name !== given && name !== "") {
      reading.warn(`${path}: served at /mcp/${name}, because ${Backends.allowedName}`)
    }
    names.add(name)
    const secrets = [...reading.secrets]
    const entry = readEntry(path, written, { ...reading, secrets })
    return entry === undefined ? [] : [{ path, name, entry, secrets, written }]
  })
}

/** Reads an entry as far as all kinds have it in common. `Backends.check` does the rest. */
const readEntry = (path: string, written: unknown, reading: Reading) => {
  const entry = record(written)
  if (entry === undefined) return void reading.fault(path, "must be an object")
  const { disabled = false, ...read } = entry
  if (typeof disabled !== "boolean") reading.fault(`${path}.disabled`, "must be true or false")
  const allowed = [...Backends.namesOf(read), ...Object.keys(Settings.backendSettings)]
  return readSettings(path, read, allowed, Names.ofClients, reading)
}

/** The settings by the names that they have in their objects. */
const settingByName = new Map<string, Settings.Setting<unknown, unknown>>([
  ...Object.entries(Settings.authSettings),
  ...Object.entries(Settings.all)
])

/** Replaces variables. Reports unknown names, and durations that are bare numbers and so do not tell their unit. */
const readSettings = (
  path: string,
  written: Values,
  allowed: ReadonlyArray<string>,
  ignored: ReadonlyArray<string>,
  reading: Reading
): Values => {
  const read: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(written)) {
    const at = `${path}${Masking.member(name)}`
    const setting = settingByName.get(name)
    if (ignored.includes(name)) reading.warn(`${at}: the gateway does not read it`)
    else if (!allowed.includes(name)) {
      const nested = Settings.writtenName(name)
      const otherwise = nested !== name && path === "gateway" ? `write ${nested}` : `allowed are ${allowed.join(", ")}`
      reading.fault(at, Names.unknown(name, allowed, otherwise))
    } else if (setting?.kind === "duration" && typeof value !== "string") {
      reading.fault(at, Settings.mustBe(setting, value))
    } else read[name] = Variables.expand(at, value, reading)
  }
  return read
}

/** Variables that Kubernetes sets for a service, here for one whose name begins with `gateway`. */
const ofService = /_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP|SCTP)/

/** Warns of `GATEWAY_` variables that are no settings. They may be another program's, so they are not faults. */
const unknownVariables = (file: string, { environment, warn }: Reading): void => {
  const known = Object.keys(Settings.all).map(Settings.variableName)
  const ofFile = Variables.namesIn(file)
  for (const name of Object.keys(environment)) {
    if (!name.startsWith(Settings.variableName("")) || known.includes(name)) continue
    if (ofFile.includes(name) || ofService.test(name)) continue
    const unknown = Names.unknown(name, known, "--help lists the variables of the gateway")
    warn(`${Masking.printable(name)}: ${unknown}`)
  }
}

const record = (value: unknown): Values | undefined => Predicate.isObject(value) ? value : undefined
