/** The back ends of a gateway: checks each entry and merges it with the settings of the gateway. */
import { Option, Predicate, Schema } from "effect"
import * as Masking from "../settings/Masking.ts"
import * as Settings from "../settings/Settings.ts"
import type { Command } from "./ProcessGroup.ts"

/**
 * How to start the process of a stdio back end, and the settings that it overrides.
 *
 * @category models
 * @since 0.1.0
 */
export interface StdioEntry extends Settings.BackendInput {
  readonly command: string
  readonly args?: ReadonlyArray<string> | undefined
  /** Variables for the process. It also gets `PATH`, `HOME` and similar variables of the gateway. */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** The working directory of the process. */
  readonly cwd?: string | undefined
}

/**
 * The address of an MCP server on Streamable HTTP, and the settings that it overrides.
 *
 * @category models
 * @since 0.1.0
 */
export interface HttpEntry extends Settings.BackendInput {
  readonly url: string
  /** Headers for every request to the server. */
  readonly headers?: Readonly<Record<string, string>> | undefined
}

/**
 * One back end, on stdio or on HTTP.
 *
 * @category models
 * @since 0.1.0
 */
export type Entry = StdioEntry | HttpEntry

/** A checked back end. Every setting has a value. */
export interface Backend {
  readonly name: string
  readonly target:
    | { readonly _tag: "Stdio"; readonly command: Command }
    | { readonly _tag: "Http"; readonly url: string; readonly headers: Readonly<Record<string, string>> }
  readonly settings: Settings.BackendSettings
  /** Hides values of the entry that may be secret. */
  readonly mask: (text: string) => string
  /** Equal for entries with the same meaning. */
  readonly fingerprint: string
  /** The entry as JSON, with variables not replaced, so it is equal on all replicas with the same file. It may hold secrets. */
  readonly entryText: () => string
}

export type Backends = ReadonlyMap<string, Backend>

/** The options of a gateway are wrong. Each fault has its path and what is allowed there. */
export class InvalidGatewayOptions extends Schema.TaggedError<InvalidGatewayOptions>()("InvalidGatewayOptions", {
  faults: Schema.Array(Schema.String)
}) {
  override get message(): string {
    return ["The gateway's options are not valid:", ...this.faults.map((fault) => `  ${fault}`)].join("\n")
  }
}

/** Names that are safe in a path, a session key and a log line. */
export const isName = (name: string): boolean => /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)
export const allowedName = "a back end's name is 1 to 64 letters, digits, \".\", \"_\" or \"-\", " +
  "beginning with a letter or digit"

type Fault = (path: string, message: string) => void

/** An entry from a file or a program, not checked yet. */
export interface Parsed {
  readonly entry: Entry
  /** Values that must not be shown. */
  readonly secrets: ReadonlyArray<string>
  /** Called only for valid entries: a faulty one may be nested too deep for `JSON.stringify`. */
  readonly entryText: () => string
}

/** Makes a `Parsed` of a program's entry. */
export const given = (entry: Entry): Parsed => ({ entry, secrets: [], entryText: () => canonical(entry) })

/** JSON with sorted keys, so that the order of keys in a file does not matter. */
export const canonical = (entry: unknown): string =>
  JSON.stringify(entry, (_, value: unknown) =>
    Predicate.isObject(value)
      ? Object.fromEntries(Object.entries(value).toSorted(([a], [b]) => a < b ? -1 : 1))
      : value)

/** Checks an entry and merges it with the settings of the gateway. Reports each fault through `fault`. */
export const resolve = (
  path: string,
  name: string,
  { entry, entryText, secrets }: Parsed,
  base: Settings.BackendSettings,
  fault: Fault
): Backend => {
  if (!isName(name)) fault(path, allowedName)
  const own = Settings.pick(Settings.backendSettings, base)
  const settings = Settings.decode(
    Settings.backendSettings,
    { ...entry },
    own,
    (key, message) => fault(`${path}.${key}`, message)
  )
  const target = "url" in entry ? http(path, entry, fault) : stdio(path, entry, fault)
  // `spares` and `stateless` apply to processes only. If they are set for all back ends, an HTTP back end ignores them.
  const decided = target._tag === "Http" ? { ...settings, spares: 0, stateless: false } : settings
  return {
    name,
    target,
    settings: decided,
    mask: Masking.make([...secrets, ...secretsOf(target)]),
    fingerprint: JSON.stringify([target, decided]),
    entryText
  }
}

const stdio = (path: string, entry: StdioEntry, fault: Fault): Backend["target"] => {
  const { args = [], command, cwd, env = {} } = entry
  if (command === "") fault(`${path}.command`, "must not be empty")
  for (const [name, value] of Object.entries(env)) {
    if (name === "" || /[=\0]/.test(name)) fault(`${path}.env`, `"${printable(name)}" is not a variable name`)
    if (value.includes("\0")) fault(`${path}.env.${printable(name)}`, "must not contain a NUL character")
  }
  for (const text of [command, cwd ?? "", ...args]) {
    if (text.includes("\0")) fault(path, "command, args and cwd must not contain a NUL character")
  }
  return { _tag: "Stdio", command: { command, args, env, cwd } }
}

const http = (path: string, entry: HttpEntry, fault: Fault): Backend["target"] => {
  const { headers = {}, spares, stateless, url } = entry
  const parsed = Option.liftThrowable(() => new URL(url))()
  if (Option.isNone(parsed) || !/^https?:$/.test(parsed.value.protocol)) {
    fault(`${path}.url`, "must be an http: or https: URL")
  }
  for (const [name, value] of Object.entries(headers)) {
    if (!/^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/.test(name)) {
      fault(`${path}.headers`, `"${printable(name)}" is not a header name`)
    } else if (!/^[\t\x20-\x7e\x80-\xff]*$/.test(value)) {
      fault(`${path}.headers.${name}`, "must not contain line breaks or control characters")
    } else if (ownHeaders.includes(name.toLowerCase())) {
      fault(`${path}.headers.${name}`, "must not be given: the gateway sets it itself")
    }
  }
  if (spares !== undefined && spares > 0) fault(`${path}.spares`, "is only for stdio back ends; remove it")
  if (stateless === true) fault(`${path}.stateless`, "is only for stdio back ends; remove it")
  return { _tag: "Http", url, headers }
}

const ownHeaders = ["host", "content-length", "content-type", "accept", "connection", "transfer-encoding"]
  .concat(["mcp-session-id", "mcp-protocol-version", "last-event-id"])

/** Escapes control characters and characters that change the text direction, for messages that are printed. */
export const printable = (text: string): string =>
  JSON.stringify(text).slice(1, -1).replace(
    /[\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`
  )

const secretsOf = (target: Backend["target"]): ReadonlyArray<string> =>
  target._tag === "Stdio"
    ? Object.values(target.command.env)
    : [...Object.values(target.headers), ...Masking.passwordsOf(target.url)]
