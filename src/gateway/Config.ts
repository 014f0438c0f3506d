/**
 * The configuration file: the `mcpServers` JSON that MCP clients use, plus an optional `gateway` object. A wrong file is
 * refused whole, with every fault and its path.
 */
import { Duration, Option, Predicate, Schema } from "effect"
import * as JsonRpc from "./JsonRpc.ts"
import type { StdioEntry } from "./StdioProcess.ts"

/** What a file says. */
export interface GatewayConfig {
  readonly backends: Readonly<Record<string, StdioEntry>>
  readonly idleTimeToLive: Duration.Duration | undefined
  readonly maxSessions: number | undefined
}

/** The file is wrong; each fault has its path in the file and what is allowed there. */
export class InvalidConfig extends Schema.TaggedError<InvalidConfig>()("InvalidConfig", {
  file: Schema.String,
  faults: Schema.Array(Schema.String)
}) {
  override get message(): string {
    return [`The configuration ${this.file} is not valid:`, ...this.faults.map((fault) => `  ${fault}`)].join("\n")
  }
}

type Environment = Readonly<Record<string, string | undefined>>

/** Names that are safe in a path, a session key and a log line. */
const backendName = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/

/** Reads the text of a file; `environment` fills in `${NAME}` and `${NAME:-default}`. */
export const parse = (file: string, text: string, environment: Environment): GatewayConfig | InvalidConfig => {
  const faults: Array<string> = []
  const fault = (path: string, allowed: string) => {
    faults.push(`${path}: ${allowed}`)
  }
  const json = JsonRpc.parse(text)
  const root = Option.isSome(json) ? record(json.value) : undefined
  if (root === undefined) {
    const what = Option.isSome(json) ? "the file must be a JSON object" : "the file is no JSON"
    return new InvalidConfig({ file, faults: [what] })
  }
  const backends: Record<string, StdioEntry> = {}
  const servers = record(root["mcpServers"])
  if (servers === undefined) fault("mcpServers", "must be an object of back ends by name")
  else if (Object.keys(servers).length === 0) fault("mcpServers", "must name at least one back end")
  for (const [name, value] of Object.entries(servers ?? {})) {
    const path = `mcpServers.${name}`
    if (!backendName.test(name)) {
      fault(
        path,
        "a back end's name is 1 to 64 letters, digits, \".\", \"_\" or \"-\", beginning with a letter or digit"
      )
      continue
    }
    const entry = stdioEntry(path, value, environment, fault)
    if (entry !== undefined) backends[name] = entry
  }
  const gateway = root["gateway"] === undefined ? {} : record(root["gateway"])
  if (gateway === undefined) fault("gateway", "must be an object")
  unknownNames("gateway", gateway ?? {}, ["idleTimeToLive", "maxSessions"], fault)
  const idleTimeToLive = duration("gateway.idleTimeToLive", gateway?.["idleTimeToLive"], fault)
  const maxSessions = gateway?.["maxSessions"]
  if (maxSessions !== undefined && !(Number.isInteger(maxSessions) && Number(maxSessions) > 0)) {
    fault("gateway.maxSessions", "must be an integer of at least 1")
  }
  return faults.length > 0
    ? new InvalidConfig({ file, faults })
    : { backends, idleTimeToLive, maxSessions: maxSessions === undefined ? undefined : Number(maxSessions) }
}

type Fault = (path: string, allowed: string) => void

const stdioEntry = (path: string, value: unknown, environment: Environment, fault: Fault): StdioEntry | undefined => {
  const entry = record(value)
  if (entry === undefined) return void fault(path, "must be an object with a command")
  if (entry["url"] !== undefined) {
    return void fault(`${path}.url`, "HTTP back ends are not supported yet; give a command")
  }
  unknownNames(path, entry, ["command", "args", "env", "cwd", "type"], fault)
  if (entry["type"] !== undefined && entry["type"] !== "stdio") fault(`${path}.type`, "must be \"stdio\"")
  const expanded = (at: string, input: unknown, what: string): string => {
    if (typeof input !== "string") {
      fault(at, what)
      return ""
    }
    return expand(at, input, environment, fault)
  }
  const command = expanded(`${path}.command`, entry["command"], "must be a string: the program to run")
  if (entry["command"] === "") fault(`${path}.command`, "must not be empty")
  const args = entry["args"] ?? []
  if (!Array.isArray(args)) fault(`${path}.args`, "must be an array of strings")
  const env = record(entry["env"] ?? {})
  if (env === undefined) fault(`${path}.env`, "must be an object of strings")
  const cwd = entry["cwd"]
  return {
    command,
    args: Array.isArray(args) ? args.map((arg, i) => expanded(`${path}.args[${i}]`, arg, "must be a string")) : [],
    env: Object.fromEntries(
      Object.entries(env ?? {}).map((
        [name, value]
      ) => [name, expanded(`${path}.env.${name}`, value, "must be a string")])
    ),
    cwd: cwd === undefined ? undefined : expanded(`${path}.cwd`, cwd, "must be a string: a directory")
  }
}

const expand = (path: string, input: string, environment: Environment, fault: Fault): string =>
  input.replace(/\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}/g, (_, name: string, fallback: string | undefined) => {
    const value = environment[name]
    if (value !== undefined && (value !== "" || fallback === undefined)) return value
    if (fallback !== undefined) return fallback
    fault(path, `the environment variable ${name} is not set; set it, or write \${${name}:-default}`)
    return ""
  })

const duration = (path: string, value: unknown, fault: Fault): Duration.Duration | undefined => {
  if (value === undefined) return undefined
  const parsed = typeof value === "string" ? decodeDuration(value) : Option.none()
  if (Option.isSome(parsed) && Duration.isPositive(parsed.value)) return parsed.value
  return void fault(path, "must be a duration greater than zero, such as \"30 minutes\"")
}

const decodeDuration = Schema.decodeUnknownOption(Schema.DurationFromString)

const unknownNames = (path: string, value: object, allowed: ReadonlyArray<string>, fault: Fault): void => {
  for (const name of Object.keys(value)) {
    if (!allowed.includes(name)) fault(`${path}.${name}`, `unknown; allowed are ${allowed.join(", ")}`)
  }
}

const record = (value: unknown): { readonly [name: string]: unknown } | undefined =>
  Predicate.isObject(value) && !Array.isArray(value) ? { ...value } : undefined
