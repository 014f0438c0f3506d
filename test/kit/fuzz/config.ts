/**
 * Cases for the fuzz of the configuration: files, settings of the command line and of the environment. Each starts from a
 * valid configuration and knows every fault that it puts in, by the path that must be told. What is read must be a
 * configuration, or exactly these faults, each on one line, with what is allowed, and without a secret.
 */
import { Duration } from "effect"
import type * as Gateway from "../../../src/gateway/Gateway.ts"
import * as Settings from "../../../src/gateway/settings/Settings.ts"
import * as Backends from "../../../src/gateway/transports/Backends.ts"
import type { Random } from "../random.ts"
import * as Random_ from "../random.ts"
import * as Bodies from "./bodies.ts"

/** What a value may be, in the fuzz a secret that no fault may show. */
export const secret = "s3cr3t-0123456789"

export interface ConfigCase {
  readonly index: number
  readonly kind: "file" | "damaged file" | "any JSON" | "options"
  readonly text: string
  readonly flags: Readonly<Record<string, unknown>>
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly options: Gateway.GatewayOptions | undefined
  /** The paths that must be told, each as often as it is wrong, sorted; `undefined`: whatever they are. */
  readonly paths: ReadonlyArray<string> | undefined
  /** The paths that must be warned of if nothing is wrong, sorted; `undefined`: whatever they are. */
  readonly warned?: ReadonlyArray<string>
  /** The names of the back ends if nothing is wrong, sorted; `undefined`: whatever they are. */
  readonly served?: ReadonlyArray<string>
}

// -----------------------------------------------------------------------------
// Values of settings
// -----------------------------------------------------------------------------

/** JSON texts of values by kind: what is read, and what is not. */
const values: Readonly<
  Record<Settings.Setting<unknown, unknown>["kind"], { good: ReadonlyArray<string>; bad: ReadonlyArray<string> }>
> = {
  duration: {
    good: [
      "\"30 minutes\"",
      "\"1 second\"",
      "\"infinity\"",
      "\" Infinity \"",
      "\"100 millis\"",
      "\"1.5 hours\"",
      "\"5m\"",
      "\"250ms\"",
      "\"1.5h\"",
      "\" 2 d \"",
      "\"1w\""
    ],
    bad: ["30", "1e400", "-1", "\"soon\"", "\"\"", "\"-1 seconds\"", "\"1\"", "true", "{}", "[]", "\"1e400 seconds x\""]
      .concat(["\"NaN seconds\"", "[\"1 second\"]", "{\"millis\":1}", "\"\\u0000\"", "\"1 fortnight\"", "\"5M\""])
      .concat(["\"m\"", "\"-5m\"", "\"5mo\"", "\"5m30s\"", "\"5m\\u0000\""])
  },
  count: {
    good: ["1", "7", "\"12\"", "9007199254740991"],
    bad: [
      "-1",
      "1.5",
      "1e400",
      "9007199254740993",
      "\"\"",
      "\"1e3\"",
      "\"0x10\"",
      "\"-1\"",
      "true",
      "[1]",
      "{}",
      "\"１\""
    ]
  },
  bytes: {
    good: ["1024", "\"4 MiB\"", "\"2048\"", "\"1 kB \"".replace(" \"", "\"").replace("1 kB", "2 kB")],
    bad: [
      "0",
      "1023",
      "-5",
      "1.5",
      "1e400",
      "\"many\"",
      "\"1 B\"",
      "\"\"",
      "true",
      "[]",
      "{}",
      "\"-4 MiB\"",
      "\"4 MiB 4\""
    ]
  },
  flag: {
    good: ["true", "false", "\"true\"", "\"no\"", "\"1\""],
    bad: ["1", "0", "\"\"", "\"maybe\"", "{}", "[]", "[true]", "\"TRUE \""]
  },
  list: {
    good: ["[]", "[\"a\"]", "\"a, b\"", "[\"__proto__\"]"],
    bad: ["1", "{}", "[1]", "[\"\"]", "\"\"", "\"a,,b\"", "[[\"a\"]]", "true", "{\"0\":\"a\",\"length\":1}"]
  },
  text: {
    good: ["\"\"", "\"a\"", "\"\\ud800\"", "\"__proto__\""],
    bad: ["1", "{}", "[]", "true", "[\"a\"]", "{\"toString\":1}"]
  },
  // Each has its own, see `ofSetting`.
  choice: {
    good: [],
    bad: ["1", "{}", "[]", "true", "\"\"", "\"__proto__\""]
  },
  secret: {
    good: [JSON.stringify(`${secret}-${secret}`), JSON.stringify("\ud800".repeat(32))],
    bad: ["1", "{}", "[]", "true", "\"\"", "\"short\"", JSON.stringify("x".repeat(31)), "[\"a\"]"]
  }
}

type Setting = Settings.Setting<unknown, unknown>
/** The entry of a back end that is HTTP does not take these. */
const notForHttp = ["spares", "stateless"]
type Table = ReadonlyArray<readonly [string, Setting]>
const allSettings: Table = Object.entries(Settings.all)
const ownSettings: Table = Object.entries(Settings.overridable)

/** A file that protects the gateway has a name. */
const protectingFile = {
  good: ["\"a\"", "\"/x\"", "\"\\ud800\"", "\"__proto__\""],
  bad: ["\"\"", "1", "{}", "[]", "true", "[\"a\"]", "{\"toString\":1}"]
}

/** Of those that take less than others of their kind, as JSON. */
const ofSetting: Readonly<
  Record<string, { readonly good: ReadonlyArray<string>; readonly bad: ReadonlyArray<string> }>
> = {
  keysFile: protectingFile,
  tlsCert: protectingFile,
  tlsKey: protectingFile,
  era: {
    good: ["\"auto\"", "\"legacy\"", "\"modern\""],
    bad: [...values.choice.bad, "\"Auto\"", "[\"auto\"]", "\"auto \"", "\"debug\""]
  },
  stderrLevel: {
    good: ["\"debug\"", "\"info\"", "\"warn\""],
    bad: [...values.choice.bad, "\"Info\"", "[\"info\"]", "\"info \"", "\"error\"", "\"auto\""]
  },
  host: { good: ["\"a\"", "\"::1\"", "\"127.0.0.1\""], bad: ["\"\"", "\"/x\"", "\"a b\"", "1"] },
  allowedHosts: {
    good: ["[]", "[\"a\", \"[::1]\"]", "\"a, b\"", "[\"__proto__\"]"],
    bad: ["[\"a:1\"]", "\"https://a\"", "[\"*\"]", "[1]", "{}"]
  },
  allowedOrigins: {
    good: ["[]", "[\"https://a:1/\"]", "\"https://a, null\"", "[\"x-y://z\"]"],
    bad: ["[\"a\"]", "\"a, b\"", "[\"https://a/b\"]", "\"*\"", "[1]", "{}"]
  }
}

/** Durations that may be zero; the others must not. */
const mayBeZero = ["closeGrace", "acquireTimeout", "drainTimeout", "leaveDelay"]

const ownValuesOf = (setting: Setting) =>
  Object.entries(ofSetting).find(([name]) => Settings.all[name] === setting)?.[1]

const valuesOf = (setting: Setting, wrong: boolean): ReadonlyArray<string> => {
  const { bad, good } = ownValuesOf(setting) ?? values[setting.kind]
  if (setting.kind === "duration") {
    const zero = ["\"0s\"", "\"0 minutes\""]
    const takesZero = mayBeZero.some((name) => Settings.all[name] === setting)
    return [...wrong ? bad : good, ...wrong === takesZero ? [] : zero]
  }
  // The port is the one count that has an upper bound too.
  if (setting !== Settings.all["port"]) return wrong ? bad : good
  const isPort = (text: string) => Number(JSON.parse(text)) <= 65535
  return wrong ? [...bad, "65536", ...good.filter((text) => !isPort(text))] : good.filter(isPort)
}

/** A value of a setting as JSON; with a fault, one that it does not take. */
const settingValue = (random: Random, setting: Setting, wrong: boolean): string => random.pick(valuesOf(setting, wrong))

// -----------------------------------------------------------------------------
// Files
// -----------------------------------------------------------------------------

const strange = ["__proto__", "constructor", "prototype", "toString", "hasOwnProperty", "", "a b", "ü", "a\n    at b"]
  .concat(["\u001b[2J", "\u007f\u009b2J", "\ud800", "x".repeat(300), "a.b", "command ", "Env"])

interface Draft {
  readonly random: Random
  readonly paths: Array<string>
  readonly warned: Array<string>
  /** Whether this place gets a fault. */
  readonly wrong: () => boolean
}

type Member = readonly [string, string]

const object = (members: ReadonlyArray<Member>): string =>
  `{${members.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join()}}`

const fault = ({ paths }: Draft, path: string): void => void paths.push(path)

/** As it stands in a path that is told: without control characters. */
const printable = (name: string): string =>
  JSON.stringify(name).slice(1, -1).replaceAll("\u007f", "\\u007f").replaceAll("\u009b", "\\u009b")

/** Nested deeper than a recursive reader bears. */
const deep = (random: Random): string => {
  const levels = random.pick([10, 1000, 20_000])
  return random.chance(0.5) ? deepArray(levels) : "{\"a\":".repeat(levels) + "1" + "}".repeat(levels)
}

const deepArray = (levels: number): string => "[".repeat(levels) + "]".repeat(levels)

const noString = (random: Random): string =>
  random.pick(["1", "true", "{}", "[]", "1e400", "{\"toString\":1}", deep(random)])

/** A string, with or without variables. */
const string = (draft: Draft, path: string): string => {
  const { random } = draft
  if (!draft.wrong()) {
    return random.pick(
      ["\"x\"", "\"${SET}\"", "\"${UNSET:-}\"", "\"${UNSET:-a}-${SET}\"", "\"${\"", "\"$SET {}\""].concat([
        "\"${env:SET}\"",
        "\"${SET%.*}\""
      ])
    )
  }
  fault(draft, path)
  return random.chance(0.5)
    ? noString(random)
    : random.pick(["\"${UNSET}\"", "\"a${constructor}\"", "\"${__proto__}\"", "\"${toString}${SET}\""].concat([
      "\"${env:UNSET}\"",
      "\"${input:key}\"",
      "\"${workspaceFolder}\""
    ]))
}

/** The value of a setting in a file: as it stands, or by way of a variable. */
const fileValue = (draft: Draft, path: string, setting: Setting): string => {
  const { random } = draft
  if (draft.wrong()) {
    if (random.chance(0.7)) {
      fault(draft, path)
      return settingValue(random, setting, true)
    }
    const isList = setting.kind === "list" && random.chance(0.5)
    fault(draft, isList ? `${path}[1]` : path)
    return isList ? "[\"${SET}\",\"a${UNSET}\"]" : random.pick(["\"${UNSET}\"", "\"${toString}\""])
  }
  const value = settingValue(random, setting, false)
  if (!random.chance(0.3)) return value
  // The default of a variable ends with the first brace.
  if (/^"[^{}]+"$/.test(value)) return `"\${${random.pick(["", "env:"])}UNSET:-${value.slice(1, -1)}}"`
  return setting === Settings.all["keys"] ? random.pick(["\"${SET}\"", "[\"${SET}\", \"${UNSET:-a}${SET}\"]"]) : value
}

/** Some settings, each once. */
const someSettings = (random: Random, count: number, table: Table, exclude: ReadonlyArray<string>): Table =>
  [...new Map(Array.from({ length: random.below(count) }, () => random.pick(table)))]
    .filter(([name]) => !exclude.includes(name))

const settingsOf = (draft: Draft, path: string, table: Table, exclude: ReadonlyArray<string>): ReadonlyArray<Member> =>
  someSettings(draft.random, 4, table, exclude).map((
    [name, setting]
  ) => [name, fileValue(draft, `${path}.${name}`, setting)])

const unknown = (draft: Draft, path: string): ReadonlyArray<Member> => {
  if (!draft.wrong()) return []
  const name = draft.random.pick([...strange, "httpUrl", "transport", "includeTools", "oauth", "enabled", "idleTTL"])
  fault(draft, `${path}.${printable(name)}`)
  return [[name, draft.random.chance(0.5) ? Bodies.anyJson(draft.random, false) : deep(draft.random)]]
}

/** What clients have in their entries too: warned of, whatever it is, or whether the entry is left out. */
const ofClients = (draft: Draft, path: string): ReadonlyArray<Member> => {
  const { random } = draft
  const names = ["autoApprove", "alwaysAllow", "timeout", "description", "envFile"] as const
  const read: ReadonlyArray<Member> = random.chance(0.2) ? [[random.pick(names), Bodies.anyJson(random, false)]] : []
  draft.warned.push(...read.map(([name]) => `${path}.${name}`))
  if (!draft.wrong()) return random.chance(0.2) ? [...read, ["disabled", "false"]] : read
  fault(draft, `${path}.disabled`)
  return [...read, ["disabled", random.pick(["1", "null", "\"true\"", "[true]", "{}"])]]
}

/** One of the members, a second time. It has no other fault, because `Config.load` may tell only one of two with the same path. */
const again = (draft: Draft, path: string, members: ReadonlyArray<Member>): ReadonlyArray<Member> => {
  const right = members.filter(([name]) => !draft.paths.includes(`${path}.${printable(name)}`))
  if (right.length === 0 || !draft.wrong()) return []
  const member = draft.random.pick(right)
  fault(draft, `${path}.${printable(member[0])}`)
  return [member]
}

const maybe = (random: Random, member: () => Member): ReadonlyArray<Member> => random.chance(0.5) ? [member()] : []

const stdio = (draft: Draft, path: string): ReadonlyArray<Member> => {
  const { random } = draft
  return [
    ["command", command(draft, path)],
    ...maybe(random, () => ["args", args(draft, path)]),
    ...maybe(random, () => ["env", record(draft, `${path}.env`, ["A", "__proto__", "constructor", "TOKEN"])]),
    ...maybe(random, () => ["cwd", string(draft, `${path}.cwd`)]),
    ...maybe(random, () => ["type", type(draft, path, ["\"stdio\""])]),
    ...settingsOf(draft, path, ownSettings, [])
  ]
}

const command = (draft: Draft, path: string): string => {
  const value = string(draft, `${path}.command`)
  // An unset variable with an empty default leaves nothing to run.
  return value === "\"${UNSET:-}\"" ? "\"x\"" : value
}

const args = (draft: Draft, path: string): string => {
  const { random } = draft
  if (draft.wrong() && random.chance(0.5)) {
    fault(draft, `${path}.args`)
    return random.pick(["1", "{}", "\"x\"", "true", "{\"length\":1}"])
  }
  return `[${Array.from({ length: random.below(3) }, (_, i) => string(draft, `${path}.args[${i}]`)).join()}]`
}

const type = (draft: Draft, path: string, good: ReadonlyArray<string>): string => {
  if (!draft.wrong()) return draft.random.pick(good)
  fault(draft, `${path}.type`)
  return draft.random.pick(["\"sse\"", "\"\"", "null", "1", "[\"stdio\"]", "[\"http\"]", "{\"toString\":1}"].concat([
    deep(draft.random)
  ]))
}

const record = (draft: Draft, path: string, names: ReadonlyArray<string>): string => {
  const { random } = draft
  if (draft.wrong() && random.chance(0.5)) {
    fault(draft, path)
    return random.pick(["1", "\"x\"", "[]", "true", "[[\"a\",\"b\"]]"])
  }
  const chosen = new Set(Array.from({ length: random.below(3) }, () => random.pick(names)))
  return object([...chosen].map((name) => {
    if (!random.chance(0.1)) return [name, string(draft, `${path}.${name}`)]
    // The variable syntax of other clients is not expanded, because the text may also be a password.
    draft.warned.push(`${path}.${name}`)
    return [name, random.pick(["\"$SET\"", "\"Bearer {env:SET}\"", "\"%SET%\""])]
  }))
}

const goodUrls = ["http://127.0.0.1:1/mcp", "HTTPS://example.org", `http://u:${secret}@h/`, "http://u:%ff@h/"]
  .concat(["http://u:%@h/", "http://%zz:p@h/", "http://ü.example/\\ud800", "http://h/${SET}"])
const badUrls = ["", "no url", "ftp://x/", "javascript:1", "http://", "http://[::1", "//x", "file:///x", "http://a b/"]
const badHeaders: ReadonlyArray<Member> = [
  ["host", "\"x\""],
  ["Content-Length", "\"1\""],
  ["x", "\"a\\nb\""],
  ["x", "\"\\u0000\""],
  ["x", "\"ü→\""]
]

const http = (draft: Draft, path: string): ReadonlyArray<Member> => {
  const { random } = draft
  const wrongUrl = draft.wrong()
  if (wrongUrl) fault(draft, `${path}.url`)
  const wrongHeader = draft.wrong()
  const bad = random.pick(badHeaders)
  if (wrongHeader) fault(draft, `${path}.headers.${bad[0]}`)
  const headers = wrongHeader
    ? object([bad])
    : record(draft, `${path}.headers`, ["x-key", "__proto__", "authorization"])
  return [
    ["url", `"${random.pick(wrongUrl ? badUrls : goodUrls)}"`],
    ["headers", headers],
    ...maybe(random, () => ["type", type(draft, path, ["\"http\"", "\"streamable-http\"", "\"streamableHttp\""])]),
    ...settingsOf(draft, path, ownSettings, notForHttp)
  ]
}

/** Names of other clients, or with a typing error, for `url` and `command`. */
const misnamed: ReadonlyArray<Member> = [
  ["httpUrl", "\"http://h/\""],
  ["serverUrl", "\"http://h/\""],
  ["uri", "\"http://h/\""],
  ["comand", "\"x\""],
  ["cmd", "\"x\""]
]

const server = (draft: Draft, path: string): string => {
  const { random } = draft
  if (draft.wrong() && random.chance(0.5)) {
    fault(draft, path)
    return random.pick([
      "1",
      "null",
      "\"x\"",
      "[]",
      "true",
      "{\"command\":\"x\",\"url\":\"http://h\"}",
      deepArray(random.pick([10, 20_000]))
    ])
  }
  if (draft.wrong() && random.chance(0.2)) {
    // One message: the misnamed member is told, and the member that is missing because of it is not.
    const [name, value] = random.pick(misnamed)
    fault(draft, `${path}.${name}`)
    return object([[name, value], ...ofClients(draft, path)])
  }
  const members = random.chance(0.6) ? stdio(draft, path) : http(draft, path)
  const all = [...members, ...ofClients(draft, path), ...unknown(draft, path)]
  return object([...all, ...again(draft, path, all)])
}

export const fileName = "file.json"
/** The name of an entry that is disabled. */
export const leftOut = "left-out"

/** Names that are not URL-safe, each with its safe form; `undefined` if nothing is left of it. */
const unsafe: ReadonlyArray<readonly [string, string | undefined]> = [
  ["__proto__", "proto__"],
  ["", undefined],
  ["a b", "a-b"],
  ["a/ b", "a-b"],
  ["ü", "u"],
  ["Öne", "One"],
  ["öne", "one"],
  [" two!", "two"],
  ["a\n    at b", "a-at-b"],
  ["\u001b[2J", "2J"],
  ["\u007f\u009b2J", "2J"],
  ["\ud800", undefined],
  ["工具", undefined],
  ["x".repeat(300), "x".repeat(64)],
  ["command ", "command"]
]

const file = (draft: Draft): { readonly text: string; readonly served: ReadonlyArray<string> } => {
  const { random } = draft
  const names = ["one", "two", "a.b-c_d", "constructor", "toString", "0"] as const
  const served = new Set(Array.from({ length: 1 + random.below(3) }, () => random.pick<string>(names)))
  const servers: Array<Member> = [...served].map((name) => [name, server(draft, `mcpServers.${name}`)])
  if (random.chance(0.2)) {
    for (const [name, safe] of new Set([random.pick(unsafe), random.pick(unsafe)])) {
      const path = `mcpServers.${printable(name)}`
      servers.push([name, "{\"command\":\"x\"}"])
      if (safe === undefined || served.has(safe)) fault(draft, path)
      else {
        draft.warned.push(path)
        served.add(safe)
      }
    }
  }
  if (random.chance(0.2)) {
    // What is wrong in it is not looked at.
    const members = stdio({ ...draft, paths: [], warned: [] }, `mcpServers.${leftOut}`)
    servers.push([leftOut, object([...members, ["disabled", "true"]])])
  }
  const members: Array<Member> = []
  if (draft.wrong() && random.chance(0.3)) {
    // What the servers had wrong is not looked at.
    const name = random.chance(0.7) ? "mcpServers" : random.pick(["servers", "context_servers", "mcpServer", undefined])
    draft.paths.splice(0, draft.paths.length, name ?? "mcpServers")
    if (name === "mcpServers") members.push([name, random.pick(["1", "[]", "{}", "null", "\"x\"", "true"])])
    else if (name !== undefined) members.push([name, "{\"one\":{\"command\":1}}"])
  } else members.push(["mcpServers", object(servers)])
  if (random.chance(0.6)) {
    if (draft.wrong() && random.chance(0.3)) {
      fault(draft, "gateway")
      members.push(["gateway", random.pick(["1", "null", "[]", "\"x\"", "true"])])
    } else {
      const settings = settingsOf(draft, "gateway", allSettings, [])
      members.push(["gateway", object([...settings, ...unknown(draft, "gateway")])])
    }
  }
  if (random.chance(0.2)) {
    members.push([random.pick(["other", "__proto__", "$schema"]), Bodies.anyJson(random, false)])
    draft.warned.push(fileName)
  }
  return { text: object(random.chance(0.5) ? members : members.toReversed()), served: [...served] }
}

// -----------------------------------------------------------------------------
// The command line and the environment
// -----------------------------------------------------------------------------

/** Strings by kind, as the environment and the command line have them. */
const strings = (random: Random, setting: Setting, wrong: boolean): unknown => {
  // Every text is one, but for some.
  if (setting.kind === "text" && ownValuesOf(setting) === undefined) {
    return wrong
      ? undefined
      : random.pick(["a", "/x", "\ud800"])
  }
  const list = valuesOf(setting, wrong)
    .filter((text) => text.startsWith("\""))
    .map((text) => JSON.parse(text))
  return random.pick(list)
}

const given = (
  draft: Draft,
  pathOf: (name: string) => string,
  keyOf: (name: string) => string,
  exclude: ReadonlyArray<string>,
  isUnset: (name: string, value: unknown) => boolean = () => false
) =>
  Object.fromEntries(
    someSettings(draft.random, 3, allSettings, exclude).flatMap(([name, setting]) => {
      const wrong = draft.wrong()
      const value = strings(draft.random, setting, wrong)
      if (value === undefined) return []
      if (wrong && !isUnset(name, value)) fault(draft, pathOf(name))
      return [[keyOf(name), value]]
    })
  )

const environmentOf = (draft: Draft): Record<string, string | undefined> => ({
  SET: secret,
  // An empty variable counts as unset, unless it was to protect the gateway.
  ...given(
    draft,
    Settings.variableName,
    Settings.variableName,
    [],
    (name, value) => value === "" && !Settings.protecting.includes(name)
  )
})

// -----------------------------------------------------------------------------
// The options of a program
// -----------------------------------------------------------------------------

/** Options that the types allow, with values that make no sense. */
const optionsOf = (draft: Draft): Gateway.GatewayOptions => {
  const { random } = draft
  const number = (path: string, minimum: number): number => {
    if (!draft.wrong()) return minimum + random.below(10)
    fault(draft, path)
    return random.pick([minimum - 1, Number.NaN, Number.POSITIVE_INFINITY, 1.5, 2 ** 60])
  }
  const duration = (path: string): Duration.Input => {
    if (!draft.wrong()) return random.pick<Duration.Input>(["1 second", 1, Duration.infinity, 5n, [1, 0]])
    fault(draft, path)
    return random.pick<Duration.Input>([Number.NaN, -1, 0, "soon" as "1 second", Duration.zero, Duration.seconds(-1)])
  }
  const wrongCommand = draft.wrong()
  if (wrongCommand) fault(draft, "backends.a.command")
  const wrongName = draft.wrong()
  const name = random.pick(strange.filter((name) => !Backends.isName(name)))
  if (wrongName) fault(draft, `backends.${printable(name)}`)
  return {
    maxSessions: number("maxSessions", 1),
    requestTimeout: duration("requestTimeout"),
    backends: {
      a: {
        command: wrongCommand ? "" : "x",
        maxInFlight: number("backends.a.maxInFlight", 1),
        env: { TOKEN: secret },
        idleTimeToLive: duration("backends.a.idleTimeToLive")
      },
      ...(wrongName ? { [name]: { command: "x" } } : {}),
      h: { url: random.pick([`http://u:${secret}@h/`, "http://u:%ff@h/", "http://%:%@h"]), headers: { x: secret } }
    }
  }
}

// -----------------------------------------------------------------------------
// Cases, and what is read
// -----------------------------------------------------------------------------

/** The case of a seed with this number. */
export const make = (seed: number, index: number): ConfigCase => {
  const random = Random_.ofCase(seed, index)
  // Often nothing is wrong, seldom much.
  const rate = random.pick([0, 0, 0.05, 0.1, 0.3])
  const draft: Draft = { random, paths: [], warned: [], wrong: () => random.chance(rate) }
  const base = { index, flags: {}, environment: { SET: secret }, options: undefined }
  const kind = random.below(100)
  if (kind < 10) return { ...base, kind: "options", text: "", options: optionsOf(draft), paths: draft.paths.toSorted() }
  if (kind < 20) return { ...base, kind: "any JSON", text: anyFile(random), paths: undefined }
  const { served, text } = file(draft)
  if (kind < 40) {
    return {
      ...base,
      kind: "damaged file",
      text: Bodies.damaged(random, Buffer.from(text)).toString("utf8"),
      paths: undefined
    }
  }
  const environment = environmentOf(draft)
  const flags = given(draft, (name) => `--${Settings.flagName(name)}`, (name) => name, [
    ...Settings.secret
  ])
  const [paths, warned] = [draft.paths.toSorted(), draft.warned.toSorted()]
  return { ...base, kind: "file", text, flags, environment, paths, warned, served: served.toSorted() }
}

const anyFile = (random: Random): string =>
  random.chance(0.3)
    ? Bodies.body(random).toString("utf8")
    : `{"mcpServers":${Bodies.anyJson(random)},"gateway":${Bodies.anyJson(random)}}`
