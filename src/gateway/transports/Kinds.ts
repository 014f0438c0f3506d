/**
 * The kinds of back ends. A kind says how its entry is written, which values of an entry are secret, and which settings it does
 * not have. A new kind is one entry of `transports`: the file, the options of a program and their faults follow from it.
 */
import { Effect, Result, Schema, SchemaIssue } from "effect"
import * as Masking from "../settings/Masking.ts"
import type { BackendSettings } from "../settings/Settings.ts"

/** Reports a fault at a path, with what is allowed there. */
export type Fault = (path: string, message: string) => void

/** A struct whose decoding needs no services. */
type EntrySchema = Schema.ConstraintDecoder<unknown> & { readonly fields: object }

interface Definition<Entry extends EntrySchema> {
  /** The name that every entry of this kind has, and no entry of another kind. */
  readonly recognisedBy: string
  readonly entry: Entry
  readonly secrets: (entry: Entry["Type"]) => ReadonlyArray<string>
  /** The settings that this kind does not have, with their values. An entry of it must not set them otherwise. */
  readonly fixed: Partial<BackendSettings>
}

const kind = <Name extends string, Entry extends EntrySchema>(name: Name, definition: Definition<Entry>) => ({
  ...definition,
  /** The names that an entry may have, besides settings. */
  names: Object.keys(definition.entry.fields),
  /** Decodes an entry. Reports every fault, and then returns `undefined`. */
  read: (path: string, input: unknown, fault: Fault) => {
    const decoded = Schema.decodeUnknownResult(definition.entry)(input, { errors: "all" })
    if (Result.isSuccess(decoded)) {
      return { target: { kind: name, entry: decoded.success }, secrets: definition.secrets(decoded.success) }
    }
    for (const issue of issuesOf(decoded.failure.issue).issues) fault(`${path}${pathText(issue.path)}`, issue.message)
    return undefined
  }
})

const issuesOf = SchemaIssue.makeFormatterStandardSchemaV1()

const pathText = (path: ReturnType<typeof issuesOf>["issues"][number]["path"] = []): string =>
  path.map((part) => typeof part === "object" ? part.key : part)
    .map((key) => typeof key === "number" ? `[${key}]` : `.${Masking.printable(String(key))}`).join("")

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
  .concat(["mcp-session-id", "mcp-protocol-version", "last-event-id"])

export const transports = {
  stdio: kind("stdio", {
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
    secrets: ({ env }) => Object.values(env),
    fixed: {}
  }),
  http: kind("http", {
    recognisedBy: "url",
    entry: Schema.Struct({
      url: text("must be a string: the URL of an MCP server on Streamable HTTP").check(
        Schema.makeFilter((url: string) =>
          /^https?:$/.test(URL.parse(url)?.protocol ?? "") ? undefined : "must be an http: or https: URL"
        )
      ),
      headers: texts((name, value) =>
        !/^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/.test(name)
          ? "is not the name of a header"
          : ownHeaders.includes(name.toLowerCase())
          ? "must not be given: the gateway sets it itself"
          : /^[\t\x20-\x7e\x80-\xff]*$/.test(value)
          ? undefined
          : "must not contain line breaks or control characters"
      ).pipe(Schema.withDecodingDefaultKey(Effect.succeed({}))),
      type: type(
        ["http", "streamable-http", "streamableHttp", "streamable_http"],
        "must be \"http\" for a url; the gateway does not support HTTP with SSE (2024-11-05): give the URL for Streamable HTTP"
      )
    }),
    secrets: ({ headers, url }) => [...Object.values(headers), ...Masking.passwordsOf(url)],
    // Only processes can wait for a session, or sleep and start again.
    fixed: { spares: 0, stateless: false }
  })
}

type Kinds = typeof transports
export type KindName = keyof Kinds

/** A checked entry and its kind. */
export type Target = { [K in KindName]: { readonly kind: K; readonly entry: Kinds[K]["entry"]["Type"] } }[KindName]
