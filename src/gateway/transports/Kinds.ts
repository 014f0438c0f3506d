/**
 * The kinds of back ends: how entries are written, and how the gateway reaches their servers. A new kind is one entry of
 * `transports`, or of the option `transports` of a program. The file, the options of a program and their faults follow from it.
 */
import type { Scope } from "effect"
import { Effect, Result, Schema, SchemaIssue } from "effect"
import type { HttpClient } from "effect/http"
import * as Masking from "../settings/Masking.ts"
import type { BackendSettings } from "../settings/Settings.ts"
import * as HttpTransport from "./HttpTransport.ts"
import * as Programs from "./Programs.ts"
import * as StdioProcess from "./StdioProcess.ts"
import type { BackendFailed, Transport } from "./Transport.ts"

/** Reports a fault at a path, with what is allowed there. */
export type Fault = (path: string, message: string) => void

/**
 * The values that a connection needs besides its entry.
 *
 * @category models
 * @since 0.1.0
 */
export interface TransportContext {
  readonly settings: BackendSettings
  /** Hides the secrets of the entry in a text. */
  readonly mask: (text: string) => string
  /** The environment of the gateway. */
  readonly environment: Readonly<Record<string, string | undefined>>
}

/**
 * A kind of back ends, as its author writes it.
 *
 * @category models
 * @since 0.1.0
 */
export interface TransportDefinition<Entry> {
  /** The name that every entry of this kind has, and no entry of another kind. */
  readonly recognisedBy: string
  /** A struct whose decoding needs no services. */
  readonly entry: Schema.ConstraintDecoder<Entry> & { readonly fields: object }
  /**
   * Whether each connection starts a server of its own. Starts then take turns, a spare can be started in advance, and a sleeping
   * session can start again. Otherwise the server runs by itself: it may be unreachable, and another server may replace it.
   */
  readonly startsServer: boolean
  // Methods, so that TypeScript takes a definition for any entry as a `TransportKind`. A kind gets only entries that its own `entry`
  // decoded.
  /** Opens a connection, which lives until the scope closes. */
  make(
    entry: Entry,
    context: TransportContext
  ): Effect.Effect<Transport, BackendFailed, Scope.Scope | HttpClient.HttpClient>
  /** The values of an entry that must not be shown. Default: none. */
  secrets?(entry: Entry): ReadonlyArray<string>
  /** Says why no connection can be opened on this machine, for a warning of the command. */
  missing?(entry: Entry, mask: (text: string) => string): string | undefined
}

/**
 * A kind of back ends, made by `transport`.
 *
 * @category models
 * @since 0.1.0
 */
export interface TransportKind extends TransportDefinition<unknown> {}

/**
 * Makes a kind of back ends, for the option `transports`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const transport = <Entry>(definition: TransportDefinition<Entry>): TransportKind => definition

/** Decodes an entry. Reports every fault at its path, and then returns `undefined`. */
export const decode = (kind: TransportKind, path: string, input: unknown, fault: Fault): unknown => {
  const decoded = Schema.decodeUnknownResult(kind.entry)(input, { errors: "all" })
  if (Result.isFailure(decoded)) {
    for (const issue of issuesOf(decoded.failure.issue).issues) fault(`${path}${pathText(issue.path)}`, issue.message)
  }
  return Result.getOrUndefined(decoded)
}

const issuesOf = SchemaIssue.makeFormatterStandardSchemaV1()

const pathText = (path: ReturnType<typeof issuesOf>["issues"][number]["path"] = []): string =>
  path.map((part) => typeof part === "object" ? part.key : part)
    .map((key) => typeof key === "number" ? `[${key}]` : Masking.member(String(key))).join("")

const text = (message = "must be a string") => Schema.String.annotate({ message })

/** Properties that are texts. `check` returns what is wrong with one of them, or `undefined`. */
const texts = (check: (name: string, value: string) => string | undefined) =>
  Schema.Record(Schema.String, text()).annotate({ message: "must be an object of strings" }).check(
    Schema.makeFilter((record: Readonly<Record<string, string>>) =>
      Object.entries(record).flatMap(([name, value]) => {
        const issue = check(name, value)
        return issue === undefined ? [] : [{ path: [name], issue }]
      })
    )
  )

const type = <const Names extends ReadonlyArray<string>>(names: Names, message: string) =>
  Schema.optionalKey(Schema.Literals(names).annotate({ message }))

/** Headers that the gateway sets itself. */
const ownHeaders = ["host", "content-length", "content-type", "accept", "connection", "transfer-encoding"]
  .concat(["mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name", "last-event-id"])

/** What is wrong with a header of an entry. `undefined` if nothing is. */
const headerFault = (name: string, value: string): string | undefined => {
  if (!/^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/.test(name)) return "is not the name of a header"
  if (ownHeaders.includes(name.toLowerCase())) return "must not be given: the gateway sets it itself"
  return /^[\t\x20-\x7e\x80-\xff]*$/.test(value) ? undefined : "must not contain line breaks or control characters"
}

export const transports = {
  stdio: transport({
    recognisedBy: "command",
    entry: Schema.Struct({
      command: text("must be a string: the program to run").check(Schema.isNonEmpty({ message: "must not be empty" })),
      args: Schema.Array(text()).annotate({ message: "must be an array of strings" })
        .pipe(Schema.withDecodingDefaultKey(Effect.succeed([]))),
      env: texts((name) => name === "" || name.includes("=") ? "is not the name of a variable" : undefined)
        .pipe(Schema.withDecodingDefaultKey(Effect.succeed({}))),
      cwd: Schema.UndefinedOr(Schema.String).annotate({ message: "must be a string: a directory" })
        .pipe(Schema.withDecodingDefaultKey(Effect.undefined)),
      type: type(["stdio"], "must be \"stdio\" for a command")
    }),
    startsServer: true,
    make: (entry, { environment, mask, settings }) => StdioProcess.start(entry, environment, settings, mask),
    secrets: ({ env }) => Object.values(env),
    missing: Programs.missing
  }),
  http: transport({
    recognisedBy: "url",
    entry: Schema.Struct({
      url: text("must be a string: the URL of an MCP server on Streamable HTTP").check(
        Schema.makeFilter((url: string) =>
          /^https?:$/.test(URL.parse(url)?.protocol ?? "") ? undefined : "must be an http: or https: URL"
        )
      ),
      headers: texts(headerFault).pipe(Schema.withDecodingDefaultKey(Effect.succeed({}))),
      type: type(
        ["http", "streamable-http", "streamableHttp", "streamable_http"],
        "must be \"http\" for a url; the gateway does not support HTTP with SSE (2024-11-05): give the URL for Streamable HTTP"
      )
    }),
    startsServer: false,
    make: (entry, { mask, settings }) => HttpTransport.make(entry, settings, mask),
    secrets: ({ headers, url }) => [...Object.values(headers), ...Masking.passwordsOf(url)]
  })
}
