/** The back ends of a gateway: checks each entry and merges it with the settings of the gateway. */
import { Effect, Schema } from "effect"
import * as Json from "../protocol/Json.ts"
import * as Masking from "../settings/Masking.ts"
import * as Settings from "../settings/Settings.ts"
import * as Kinds from "./Kinds.ts"

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
 * An entry of a kind from the option `transports`, and the settings that it overrides.
 *
 * @category models
 * @since 0.1.0
 */
export interface OtherEntry extends Settings.BackendInput {
  readonly command?: never
  readonly url?: never
  readonly [name: string]: unknown
}

/**
 * One back end.
 *
 * @category models
 * @since 0.1.0
 */
export type Entry = StdioEntry | HttpEntry | OtherEntry

/** A checked back end. Every setting has a value. */
export interface Backend {
  readonly name: string
  /** The name of its kind. */
  readonly kind: string
  readonly transport: Kinds.TransportKind
  /** The decoded entry of that kind. */
  readonly entry: unknown
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
    return ["The configuration is not valid:", ...this.faults.map((fault) => `  ${fault}`)].join("\n")
  }
}

/** Runs a check that reports faults. Fails with every fault, if there is one. */
export const validated = <A>(check: (fault: Kinds.Fault) => A): Effect.Effect<A, InvalidGatewayOptions> =>
  Effect.suspend(() => {
    const faults = new Map<string, string>()
    const value = check((path, message) => {
      // A value with a fault in it cannot be judged, so a fault of the whole value would only repeat that.
      const isTold = [...faults.keys()].some((told) =>
        told === path || told.startsWith(`${path}.`) || told.startsWith(`${path}[`)
      )
      if (!isTold) faults.set(path, message)
    })
    return faults.size === 0
      ? Effect.succeed(value)
      : Effect.fail(
        new InvalidGatewayOptions({ faults: Array.from(faults, ([path, message]) => `${path}: ${message}`) })
      )
  })

/** Names that are safe in a path, a session key and a log line. */
export const isName = (name: string): boolean => /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)
export const allowedName = "a back end's name is 1 to 64 letters, digits, \".\", \"_\" or \"-\", " +
  "beginning with a letter or digit"

/** An entry from a file or a program, not checked yet. */
export interface Unchecked {
  readonly path: string
  readonly name: string
  readonly entry: object
  /** Values that must not be shown, besides those that the kind of the entry names. */
  readonly secrets: ReadonlyArray<string>
  /** The entry as its author wrote it. */
  readonly written: unknown
}

/** The entries of a program, or of the command line. */
export const given = (prefix: string, entries: Readonly<Record<string, Entry>>): ReadonlyArray<Unchecked> =>
  Object.entries(entries).map(([name, entry]) => ({
    path: prefix === "" ? Masking.printable(name) : `${prefix}${Masking.member(name)}`,
    name,
    entry: Settings.given(entry),
    secrets: [],
    written: entry
  }))

type KindsByName = Readonly<Record<string, Kinds.TransportKind>>

/** Checks entries and merges each with the settings of the gateway. Reports each fault, and leaves out entries with one. */
export const check = (
  entries: ReadonlyArray<Unchecked>,
  base: Settings.BackendSettings,
  fault: Kinds.Fault,
  kinds: KindsByName = Kinds.transports
): Backends => {
  const backends = new Map<string, Backend>()
  for (const { entry, name, path, secrets, written } of entries) {
    if (!isName(name)) fault(path, allowedName)
    const own = Settings.decode(
      Settings.backendSettings,
      { ...entry },
      (key, message) => fault(`${path}.${key}`, message),
      base
    )
    const [found, another] = kindsOf(entry, kinds)
    if (found === undefined || another !== undefined) {
      const names = Object.values(kinds).map(({ recognisedBy }) => recognisedBy)
      fault(path, `must have a ${names.join(" or a ")}${another === undefined ? "" : ", and only one"}`)
      continue
    }
    const [kind, transport] = found
    const fixed = transport.startsServer ? {} : ofStartedServers
    for (const [setting, value] of Object.entries(fixed)) {
      if (setting in entry && Settings.given(own)[setting] !== value) {
        fault(`${path}.${setting}`, `is not for a back end with a ${transport.recognisedBy}; remove it`)
      }
    }
    const decoded = Kinds.decode(transport, path, entry, fault)
    if (decoded === undefined) continue
    const settings = { ...own, ...fixed }
    backends.set(name, {
      name,
      kind,
      transport,
      entry: decoded,
      settings,
      mask: Masking.make([...secrets, ...transport.secrets?.(decoded) ?? []]),
      fingerprint: JSON.stringify([kind, decoded, settings]),
      entryText: () => Json.canonical(written)
    })
  }
  return backends
}

/** The settings that only a server that the gateway starts can have, and their values for other servers. */
const ofStartedServers = { spares: 0, stateless: false }

/** The kinds that an entry may be of. A valid entry has one. */
const kindsOf = (entry: object, kinds: KindsByName) =>
  Object.entries(kinds).filter(([, { recognisedBy }]) => recognisedBy in entry)

/** The names that an entry may have, besides settings. Those of every kind, if the kind is not clear. */
export const namesOf = (entry: object): ReadonlyArray<string> => {
  const found = kindsOf(entry, Kinds.transports)
  const possible = found.length === 1 ? found : Object.entries(Kinds.transports)
  return [...new Set(possible.flatMap(([, { entry }]) => Object.keys(entry.fields)))]
}
