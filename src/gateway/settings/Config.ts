/**
 * What an operator says, from three places: the command line over the environment over a file. A file is the `mcpServers`
 * JSON that MCP clients use, plus an optional `gateway` object. What is wrong is refused whole: every fault at once, each
 * with its place and what is allowed there.
 */
import { Option, Predicate, Schema } from "effect"
import * as Backends from "../backends/Backends.ts"
import * as JsonRpc from "../messages/JsonRpc.ts"
import * as Settings from "./Settings.ts"

/** Everything decided. */
export interface GatewayConfig {
  readonly backends: Backends.Backends
  readonly settings: Settings.GatewaySettings
}

/** The configuration is wrong; each fault has its place and what is allowed there. */
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
  /** The settings given on the command line, by name. */
  readonly flags: Readonly<Record<string, unknown>>
  readonly environment: Environment
  /** A file's name and text. */
  readonly file: { readonly name: string; readonly text: string } | undefined
  /** Entries that are served without a file. */
  readonly entries: Readonly<Record<string, Backends.Entry>>
}

/** Puts the sources together. */
export const load = ({ entries, environment, file, flags }: Sources): GatewayConfig | InvalidConfig => {
  const faults: Array<string> = []
  const fault: Fault = (path, message) => {
    faults.push(`${path}: ${message}`)
  }
  const root = file === undefined ? {} : read(file, fault)
  const fromFile = root["gateway"] === undefined ? {} : record(root["gateway"])
  if (fromFile === undefined) fault("gateway", "must be an object")
  unknownNames("gateway", fromFile ?? {}, Object.keys(Settings.all), fault)
  const tables = { ...Settings.backendSettings, ...Settings.gatewaySettings }
  let settings = Settings.decode(
    tables,
    textDurations("gateway", fromFile ?? {}, fault),
    Settings.defaults(tables),
    (name, message) => fault(`gateway.${name}`, message)
  )
  settings = Settings.decode(
    tables,
    Object.fromEntries(Object.keys(tables).map((name) => [name, environment[Settings.variableName(name)]])),
    settings,
    (name, message) => fault(Settings.variableName(name), message)
  )
  settings = Settings.decode(tables, flags, settings, (name, message) => fault(`--${Settings.flagName(name)}`, message))
  const backends = new Map<string, Backends.Backend>()
  const add = (path: string, name: string, entry: Backends.Entry, secrets: ReadonlyArray<string>) => {
    backends.set(name, Backends.resolve(path, name, entry, settings, secrets, fault))
  }
  for (const [name, entry] of Object.entries(entries)) add(name, name, entry, [])
  if (file !== undefined && root !== nothing) {
    const servers = record(root["mcpServers"])
    if (servers === undefined) fault("mcpServers", "must be an object of back ends by name")
    else if (Object.keys(servers).length === 0) fault("mcpServers", "must name at least one back end")
    for (const [name, value] of Object.entries(servers ?? {})) {
      const path = `mcpServers.${Backends.printable(name)}`
      const parsed = parseEntry(path, value, environment, fault)
      if (parsed !== undefined) add(path, name, parsed.entry, parsed.secrets)
      else if (!Backends.isName(name)) fault(path, Backends.allowedName)
    }
  }
  return faults.length > 0 ? new InvalidConfig({ faults }) : { backends, settings }
}

const nothing: { readonly [name: string]: unknown } = {}

const read = (file: { readonly name: string; readonly text: string }, fault: Fault) => {
  const json = JsonRpc.parse(file.text)
  const root = Option.isSome(json) ? record(json.value) : undefined
  if (root !== undefined) return root
  fault(file.name, Option.isSome(json) ? "the file must be a JSON object" : "the file is no JSON")
  return nothing
}

const httpTypes: ReadonlyArray<unknown> = ["http", "streamable-http", "streamableHttp"]

const parseEntry = (path: string, value: unknown, environment: Environment, fault: Fault) => {
  const entry = record(value)
  if (entry === undefined) return void fault(path, "must be an object with a command or a url")
  const isHttp = entry["url"] !== undefined
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
      Object.entries(object ?? {}).map((
        [name, value]
      ) => [name, string(`${at}.${Backends.printable(name)}`, value, "must be a string")])
    )
  }
  const own = textDurations(path, entry, fault)
  const settings = Object.fromEntries(Object.keys(Settings.overridable).map((name) => [name, own[name]]))
  const common = isHttp ? ["url", "headers", "type"] : ["command", "args", "env", "cwd", "type"]
  unknownNames(path, entry, [...common, ...Object.keys(Settings.overridable)], fault)
  if (isHttp) {
    if (entry["type"] !== undefined && !httpTypes.includes(entry["type"])) {
      fault(`${path}.type`, "must be \"http\" for a url")
    }
    const url = string(`${path}.url`, entry["url"], "must be a string: the URL of an MCP server on Streamable HTTP")
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
      command: string(`${path}.command`, entry["command"], "must be a string: the program to run"),
      args: Array.isArray(args) ? args.map((arg, i) => string(`${path}.args[${i}]`, arg, "must be a string")) : [],
      env: strings(`${path}.env`, entry["env"]),
      cwd: entry["cwd"] === undefined
        ? undefined
        : string(`${path}.cwd`, entry["cwd"], "must be a string: a directory")
    },
    secrets
  }
}

/** In a file a duration is a text: a bare number does not say which unit of time it means. */
const textDurations = (path: string, input: Readonly<Record<string, unknown>>, fault: Fault) =>
  Object.fromEntries(
    Object.entries(input).filter(([name, value]) => {
      const setting = Object.hasOwn(Settings.all, name) ? Settings.all[name] : undefined
      if (setting?.kind !== "duration" || typeof value === "string") return true
      fault(`${path}.${name}`, `must be ${setting.allowed}`)
      return false
    })
  )

const expand = (path: string, input: string, environment: Environment, secrets: Array<string>, fault: Fault): string =>
  input.replace(/\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}/g, (_, name: string, fallback: string | undefined) => {
    // Not what an object inherits: no variable is named `constructor`.
    const value = Object.hasOwn(environment, name) ? environment[name] : undefined
    if (value !== undefined && (value !== "" || fallback === undefined)) {
      secrets.push(value)
      return value
    }
    if (fallback !== undefined) return fallback
    fault(path, `the environment variable ${name} is not set; set it, or write \${${name}:-default}`)
    return ""
  })

const unknownNames = (path: string, value: object, allowed: ReadonlyArray<string>, fault: Fault): void => {
  for (const name of Object.keys(value)) {
    if (!allowed.includes(name)) {
      fault(`${path}.${Backends.printable(name)}`, `unknown; allowed are ${allowed.join(", ")}`)
    }
  }
}

const record = (value: unknown): { readonly [name: string]: unknown } | undefined =>
  Predicate.isObject(value) && !Array.isArray(value) ? { ...value } : undefined
