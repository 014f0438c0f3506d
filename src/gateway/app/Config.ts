/**
 * The configuration, from three sources. The command line overrides the environment, which overrides a file. A file is the
 * `mcpServers` JSON that MCP clients use, plus an optional `gateway` object. One fault refuses the whole configuration; the
 * error lists every fault with its place and what is allowed there.
 */
import { Option, Predicate, Schema } from "effect"
import * as Settings from "../settings/Settings.ts"
import * as Backends from "../transports/Backends.ts"
import * as CommandName from "./CommandName.ts"
import * as JsonFault from "./JsonFault.ts"
import { nearest, wholeOf } from "./Nearest.ts"
import * as OtherClients from "./OtherClients.ts"

/** A checked configuration: every setting has a value. */
export interface GatewayConfig {
  readonly backends: Backends.Backends
  readonly settings: Settings.GatewaySettings
}

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

type Environment = Readonly<Record<string, string | undefined>>
type Fault = (path: string, message: string) => void

export interface Sources {
  /** The settings from the command line, by name. */
  readonly flags: Readonly<Record<string, unknown>>
  readonly environment: Environment
  /** The name and text of the configuration file. */
  readonly file: { readonly name: string; readonly text: string } | undefined
  /** Back ends that come from the command line, not from a file. */
  readonly entries: Readonly<Record<string, Backends.Entry>>
}

/** Merges the sources and checks the result. */
export const load = ({ entries, environment, file, flags }: Sources): Loaded | InvalidConfig => {
  const faults: Array<string> = []
  const places = new Set<string>()
  const fault: Fault = (path, message) => {
    faults.push(`${path}: ${message}`)
    places.add(path)
  }
  const root = file === undefined ? {} : read(file, fault)
  const { misnamed, others } = rootNamesOf(root, fault)
  const fromFile = root["gateway"] === undefined ? {} : record(root["gateway"])
  if (fromFile === undefined) fault("gateway", "must be an object")
  unknownNames("gateway", fromFile ?? {}, Object.keys(Settings.all), fault)
  const strangers = unknownVariables(environment, file?.text ?? "", fault)
  const secrets: Array<string> = []
  const expanded = expandSettings("gateway", fromFile ?? {}, environment, secrets, fault)
  const settings = settingsOf(textDurations("gateway", expanded, fault), environment, flags, fault)
  const backends = new Map<string, Backends.Backend>()
  const unread: Array<string> = []
  const add = (path: string, name: string, parsed: Backends.Parsed) => {
    // A place with a fault has no usable value, so a second fault about its value would only repeat the first.
    const told = new Set(places)
    backends.set(
      name,
      Backends.resolve(path, name, parsed, settings, (at, message) => told.has(at) || fault(at, message))
    )
  }
  for (const [name, entry] of Object.entries(entries)) add(name, name, Backends.given(entry))
  if (file !== undefined && root !== nothing) {
    const served = servedOf(root, misnamed, fault)
    const names = new Set(served.map(([given]) => given).filter(Backends.isName))
    for (const [given, value] of served) {
      const path = `mcpServers.${Backends.printable(given)}`
      const name = Backends.isName(given) ? given : CommandName.urlSafe(given)
      if (name !== given && Backends.isName(name)) {
        if (names.has(name)) fault(path, `needs another name: another server already has "${name}" in its URL`)
        else unread.push(`${path}: served at /mcp/${name}, because ${Backends.allowedName}`)
        names.add(name)
      }
      const parsed = parseEntry(path, value, environment, { fault, warn: (text) => unread.push(text) })
      if (parsed !== undefined) {
        add(path, name, {
          entry: parsed.entry,
          secrets: [...parsed.secrets, ...secrets],
          entryText: () => Backends.canonical(value)
        })
      } else if (!Backends.isName(name)) fault(path, Backends.allowedName)
    }
  }
  if (faults.length > 0) return new InvalidConfig({ faults })
  const unknown = others.map((name) => `"${Backends.printable(name)}"`).join(", ")
  const warnings = [
    ...unknown === "" ? [] : [`${file?.name}: the gateway does not read ${unknown}; settings belong in "gateway"`],
    ...unread,
    ...strangers.map((name) => `${Backends.printable(name)}: unknown; --help lists the variables of the gateway`)
  ]
  return { backends, settings, warnings }
}

/** The settings for all servers. The environment overrides the file, and the command line overrides both. */
const settingsOf = (file: Sources["flags"], environment: Environment, flags: Sources["flags"], fault: Fault) => {
  const tables = { ...Settings.backendSettings, ...Settings.gatewaySettings }
  const variables = Object.fromEntries(Object.keys(tables).map((name) => [name, variable(environment, name)]))
  let settings = Settings.decode(
    tables,
    file,
    Settings.defaults(tables),
    (name, message) => fault(`gateway.${name}`, message)
  )
  settings = Settings.decode(
    tables,
    variables,
    settings,
    (name, message) => fault(Settings.variableName(name), message)
  )
  return Settings.decode(tables, flags, settings, (name, message) => fault(`--${Settings.flagName(name)}`, message))
}

/** The entries of a file that are served, by name. */
const servedOf = (root: Readonly<Record<string, unknown>>, misnamed: ReadonlyArray<string>, fault: Fault) => {
  const servers = record(root["mcpServers"])
  // `rootNamesOf` has already reported a name that is nearly `mcpServers`.
  if (servers === undefined && !misnamed.includes("mcpServers")) {
    fault("mcpServers", "must be an object of back ends by name")
  }
  const served = Object.entries(servers ?? {}).filter(([, value]) => record(value)?.["disabled"] !== true)
  if (servers !== undefined && served.length === 0) {
    const isEmpty = Object.keys(servers).length === 0
    fault("mcpServers", `must name at least one back end${isEmpty ? "" : " that is not disabled"}`)
  }
  return served
}

/** The variable of a setting. An empty one counts as unset, but not for keys and TLS, which would then protect nothing. */
const variable = (environment: Environment, name: string): string | undefined => {
  const value = environment[Settings.variableName(name)]
  return value === "" && !Settings.protecting.includes(name) ? undefined : value
}

/** The names at the top of a file that the gateway reads. */
const rootNames = ["mcpServers", "gateway"]

/** Checks all other names at the top of a file. Refuses a name that is nearly one of `rootNames`, and allows the others. */
const rootNamesOf = (root: object, fault: Fault) => {
  const misnamed: Array<string> = []
  const others: Array<string> = []
  for (const name of Object.keys(root).filter((name) => !rootNames.includes(name))) {
    const meant = nearest(name, rootNames)
    const client = "mcpServers" in root ? undefined : OtherClients.servers.get(name)
    if (client !== undefined) {
      misnamed.push("mcpServers")
      fault(name, `unknown; this is ${client}'s name for mcpServers: rename it`)
    } else if (meant === undefined) others.push(name)
    else {
      misnamed.push(meant)
      fault(Backends.printable(name), `unknown; did you mean ${meant}?`)
    }
  }
  return { misnamed, others }
}

const nothing: { readonly [name: string]: unknown } = {}

const parse = Option.liftThrowable((text: string): unknown => JSON.parse(text))

const read = (file: { readonly name: string; readonly text: string }, fault: Fault) => {
  const json = parse(file.text)
  const root = Option.isSome(json) ? record(json.value) : undefined
  if (root !== undefined) {
    for (const { column, line, path } of JsonFault.repeats(file.text)) {
      const again = `appears twice in its object (again at line ${line}, column ${column}); JSON keeps only the last`
      fault(path.map(Backends.printable).join("."), again)
    }
    return root
  }
  fault(file.name, Option.isSome(json) ? "the file must be a JSON object" : `the file is not JSON${slip(file.text)}`)
  return nothing
}

/** The first fault of a text and its place. Not the message of `JSON.parse`, which quotes the text and so may show a secret. */
const slip = (text: string): string => {
  const found = JsonFault.find(text)
  return found === undefined ? "" : `: ${found.reason} (line ${found.line}, column ${found.column})`
}

const httpTypes: ReadonlyArray<unknown> = ["http", "streamable-http", "streamableHttp", "streamable_http"]
const stdioNames = ["command", "args", "env", "cwd", "type", "disabled"]
const httpNames = ["url", "headers", "type", "disabled"]
const allNames = [...new Set([...stdioNames, ...httpNames])]

/** `fault` reports an error in an entry; `warn` reports an oddity that is not refused. */
interface Told {
  readonly fault: Fault
  readonly warn: (text: string) => void
}

const parseEntry = (path: string, value: unknown, environment: Environment, { fault, warn }: Told) => {
  const entry = record(value)
  if (entry === undefined) return void fault(path, "must be an object with a command or a url")
  // The kind of an entry follows from the names that were meant, so one misspelt name causes one message.
  const meant = Object.keys(entry).map((name) => ours(name, allNames) ?? name)
  const isStdio = meant.includes("command")
  const isHttp = entry["url"] !== undefined ||
    !isStdio && (meant.includes("url") || meant.includes("headers") || [...httpTypes, "sse"].includes(entry["type"]))
  if (isHttp && entry["command"] !== undefined) return void fault(path, "must have a command or a url, not both")
  const secrets: Array<string> = []
  const string = (at: string, input: unknown, what: string): string => {
    if (typeof input !== "string") {
      fault(at, what)
      return ""
    }
    return expand(at, input, environment, secrets, fault)
  }
  const strings = (at: string, input: unknown): Record<string, string> => {
    const object = input === undefined ? {} : record(input)
    if (object === undefined) fault(at, "must be an object of strings")
    return Object.fromEntries(
      Object.entries(object ?? {}).map(([name, value]) => {
        const place = `${at}.${Backends.printable(name)}`
        if (OtherClients.looksLikeVariable(value)) {
          warn(`${place}: looks like a variable, but is used literally; write a variable as \${NAME}`)
        }
        return [name, string(place, value, "must be a string")]
      })
    )
  }
  const own = textDurations(path, expandSettings(path, entry, environment, secrets, fault), fault)
  const settings = Object.fromEntries(Object.keys(Settings.overridable).map((name) => [name, own[name]]))
  for (const name of Object.keys(entry)) {
    const instead = OtherClients.unread.get(name)
    if (instead !== undefined) warn(`${path}.${name}: the gateway does not read it; ${instead}`)
  }
  const read = Object.fromEntries(Object.entries(entry).filter(([name]) => !OtherClients.unread.has(name)))
  const names = isHttp ? httpNames : isStdio ? stdioNames : allNames
  const hasUnknown = unknownNames(path, read, [...names, ...Object.keys(Settings.overridable)], fault)
  const required = (name: string, what: string): string =>
    // A placeholder. The unknown name has been reported and is probably the missing one, so that is not reported too.
    entry[name] === undefined && hasUnknown ? "http://localhost" : string(`${path}.${name}`, entry[name], what)
  if (entry["disabled"] !== undefined && typeof entry["disabled"] !== "boolean") {
    fault(`${path}.disabled`, "must be true or false")
  }
  if (isHttp) {
    if (entry["type"] !== undefined && !httpTypes.includes(entry["type"])) {
      const older = "; the gateway does not support HTTP with SSE (2024-11-05): give the URL for Streamable HTTP"
      fault(`${path}.type`, `must be "http" for a url${entry["type"] === "sse" ? older : ""}`)
    }
    const url = required("url", "must be a string: the URL of an MCP server on Streamable HTTP")
    return { entry: { ...settings, url, headers: strings(`${path}.headers`, entry["headers"]) }, secrets }
  }
  if (entry["type"] !== undefined && entry["type"] !== "stdio") {
    fault(`${path}.type`, "must be \"stdio\" for a command")
  }
  const args = entry["args"] ?? []
  if (!Array.isArray(args)) fault(`${path}.args`, "must be an array of strings")
  return {
    entry: {
      ...settings,
      command: required("command", "must be a string: the program to run"),
      args: Array.isArray(args) ? args.map((arg, i) => string(`${path}.args[${i}]`, arg, "must be a string")) : [],
      env: strings(`${path}.env`, entry["env"]),
      cwd: entry["cwd"] === undefined
        ? undefined
        : string(`${path}.cwd`, entry["cwd"], "must be a string: a directory")
    },
    secrets
  }
}

/** Replaces the variables in settings. Drops a setting whose variable is missing: its value would only cause a second fault. */
const expandSettings = (
  path: string,
  input: Readonly<Record<string, unknown>>,
  environment: Environment,
  secrets: Array<string>,
  fault: Fault
): Readonly<Record<string, unknown>> =>
  Object.fromEntries(
    Object.entries(input).flatMap(([name, value]) => {
      if (!Object.hasOwn(Settings.all, name)) return [[name, value]]
      let isWhole = true
      const text = (at: string, value: unknown): unknown =>
        typeof value !== "string" ? value : expand(at, value, environment, secrets, (at, message) => {
          isWhole = false
          fault(at, message)
        })
      const at = `${path}.${name}`
      const whole = Array.isArray(value) ? value.map((item, i) => text(`${at}[${i}]`, item)) : text(at, value)
      return isWhole ? [[name, whole]] : []
    })
  )

/** Refuses a duration that is not a string: a bare number in a file does not name its unit. */
const textDurations = (path: string, input: Readonly<Record<string, unknown>>, fault: Fault) =>
  Object.fromEntries(
    Object.entries(input).filter(([name, value]) => {
      const setting = Object.hasOwn(Settings.all, name) ? Settings.all[name] : undefined
      if (setting?.kind !== "duration" || typeof value === "string") return true
      fault(`${path}.${name}`, Settings.mustBe(setting, value))
      return false
    })
  )

const expand = (path: string, input: string, environment: Environment, secrets: Array<string>, fault: Fault): string =>
  input.replace(
    reference,
    (whole, name: string | undefined, fallback: string | undefined, other: string | undefined) => {
      // Own properties only: `${constructor}` must not find the inherited property.
      const value = name !== undefined && Object.hasOwn(environment, name) ? environment[name] : undefined
      if (value !== undefined && (value !== "" || fallback === undefined)) {
        secrets.push(value)
        return value
      }
      if (fallback?.includes("${") === true) fault(path, `must not have a variable in the default of \${${name}}`)
      if (fallback !== undefined) return fallback
      const refusal = OtherClients.refusalOf(name ?? other ?? "")
      if (refusal === undefined && name === undefined) return whole
      fault(path, refusal ?? `the environment variable ${name} is not set; set it, or write \${${name}:-default}`)
      return ""
    }
  )

/** Matches `${NAME}` and `${NAME:-default}`, also with the `env:` of other clients, or else any other `${…}`. */
const reference = /\$\{(?:(?:env:)?([A-Za-z_]\w*)(?::-([^}]*))?|([^}$]*))\}/g

/** The allowed name that was probably meant: another client's name, or a misspelling. */
const ours = (name: string, allowed: ReadonlyArray<string>): string | undefined =>
  OtherClients.renamed.get(name)?.ours ?? nearest(name, allowed) ?? wholeOf(name, allowed)

/** Reports every name that is not allowed, and what to do about it. Returns whether there was one. */
const unknownNames = (path: string, value: object, allowed: ReadonlyArray<string>, fault: Fault): boolean => {
  const unknown = Object.keys(value).filter((name) => !allowed.includes(name))
  for (const name of unknown) {
    const meant = ours(name, allowed)
    const next = OtherClients.refused.get(name) ?? OtherClients.renamed.get(name)?.next ??
      (meant === undefined ? `allowed are ${allowed.join(", ")}` : `did you mean ${meant}?`)
    fault(`${path}.${Backends.printable(name)}`, `unknown; ${next}`)
  }
  return unknown.length > 0
}

/** Refuses variables whose names are nearly settings. Returns those that only share the prefix: they may be another program's. */
const unknownVariables = (environment: Environment, file: string, fault: Fault): ReadonlyArray<string> => {
  const strangers: Array<string> = []
  const known = Object.keys(Settings.all).map(Settings.variableName)
  for (const [name, value] of Object.entries(environment)) {
    if (known.includes(name) || value === undefined || isOfService(name, value)) continue
    // A variable that the file refers to may have any name.
    if (["${", "${env:"].some((open) => file.includes(`${open}${name}}`) || file.includes(`${open}${name}:-`))) continue
    const ours = name.startsWith(prefix)
    // Compares without a correct prefix, which would make every name look near.
    const rest = ours ? prefix.length : 0
    const meant = nearest(name.slice(rest), known.map((each) => each.slice(rest)))
    if (meant !== undefined) fault(Backends.printable(name), `unknown; did you mean ${name.slice(0, rest)}${meant}?`)
    else if (ours) strangers.push(name)
  }
  return strangers
}

const prefix = Settings.variableName("")

/** Whether a variable is one that Kubernetes sets for a service, here for a service whose name begins with `gateway`. */
const isOfService = (name: string, value: string): boolean =>
  /_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$/.test(name) ||
  name.endsWith("_PORT") && /^(tcp|udp|sctp):\/\//.test(value)

const record = (value: unknown): { readonly [name: string]: unknown } | undefined =>
  Predicate.isObject(value) && !Array.isArray(value) ? { ...value } : undefined
