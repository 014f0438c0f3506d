/**
 * Every setting of the gateway: its default, its allowed values and its meaning. The command line, the environment, the
 * configuration file and `--help` all derive from these tables.
 *
 * `idleTimeToLive` is `--idle-time-to-live` on the command line, `GATEWAY_IDLE_TIME_TO_LIVE` in the environment and
 * `idleTimeToLive` in a file. A new setting is a line in `backendSettings` (each back end may have its own) or in
 * `gatewaySettings`, and a row in the table of `src/gateway/REFERENCE.md`, which a test compares with this one.
 */
import { ByteSize, Duration, Option, Predicate, Record, Struct } from "effect"
import { isIPv4, isIPv6 } from "node:net"

export interface Setting<out A, out Input> {
  readonly kind: "duration" | "count" | "bytes" | "flag" | "list" | "text" | "choice"
  readonly default: A
  /** The default as a person would write it. Empty if there is none. */
  readonly shown: string
  readonly description: string
  /** The allowed values, worded to follow "must be". */
  readonly allowed: string
  /** The allowed values of the kind `choice`. */
  readonly choices?: ReadonlyArray<string>
  /** Reads a value from a program, a file, the environment or the command line. */
  readonly decode: (input: unknown) => Option.Option<A>
  readonly Input: Input | undefined
}

/** Makes the constructor of one type of settings. It takes the default, as a person would write it, and the description. */
const type = <A, Input = A>(
  kind: Setting<A, Input>["kind"],
  allowed: string,
  decode: (input: unknown) => Option.Option<A>
) =>
(fallback: Input, description: string): Setting<A, Input> => ({
  kind,
  allowed,
  decode,
  description,
  shown: String(fallback),
  // The default of a setting that is optional, such as an empty text, is not one of the allowed values.
  default: Option.getOrElse(decode(fallback), () => fallback) as A,
  Input: undefined
})

/** Short units of time, and the names that `Duration` has for them. */
const units = new Map(
  Object.entries({ ms: "millis", s: "seconds", m: "minutes", h: "hours", d: "days", w: "weeks" })
)

const unitsOfTime = `units: ${[...units].map(([short, long]) => `${long} or ${short}`).join(", ")}`

/** Turns `5m` into `5 minutes`. Any text that is not a number with a unit stays unchanged. */
const spellOut = (text: string): string =>
  text.replace(/^\s*infinity\s*$/i, "Infinity")
    .replace(/^\s*(-?\d+(?:\.\d+)?)\s*([a-z]+)\s*$/, (_, number, unit) => `${number} ${units.get(unit) ?? unit}`)

const durations = (allowed: string, isAllowed: (duration: Duration.Duration) => boolean) =>
  type<Duration.Duration, Duration.Input>("duration", `${allowed} (${unitsOfTime})`, (input) =>
    Option.filter(
      // `fromInput` fails for a value of another type.
      Duration.fromInput((typeof input === "string" ? spellOut(input) : input) as Duration.Input),
      isAllowed
    ))
const duration = durations(
  "a duration greater than zero, such as \"30 minutes\", \"5m\" or \"infinity\"",
  Duration.isPositive
)
const durationOrZero = durations(
  "a duration, such as \"30 minutes\", \"0s\" or \"infinity\"",
  (duration) => !Duration.isNegative(duration)
)
/** The tolerance of clocks. A long one would keep expired tokens alive. */
const shortTime = durations(
  "a duration of at most 5 minutes, such as \"5 seconds\" or \"0s\"",
  (duration) => !Duration.isNegative(duration) && Duration.toMinutes(duration) <= 5
)
/** A replica renews its lock at least three times within this, and a slow database needs time. Never infinite: no session would move. */
const lockTime = durations(
  "a finite duration of at least 5 seconds, such as \"1 minute\" or \"35s\"",
  (duration) => Duration.isFinite(duration) && Duration.toSeconds(duration) >= 5
)

const integer = (minimum: number, maximum = Infinity) =>
  type<number>(
    "count",
    maximum === Infinity ? `an integer of at least ${minimum}` : `an integer from ${minimum} to ${maximum}`,
    (input) => {
      const value = typeof input === "string" && /^\d+$/.test(input) ? Number(input) : input
      return typeof value === "number" && Number.isSafeInteger(value) && value >= minimum && value <= maximum
        ? Option.some(value)
        : Option.none()
    }
  )
const count = integer(1)

const bytes = type<number, number | string>(
  "bytes",
  "a number of bytes of at least 1024, such as 4194304 or \"4 MiB\"",
  (input) => {
    if (typeof input !== "number" && typeof input !== "string") return Option.none()
    const size = ByteSize.fromString(/^\d+$/.test(String(input)) ? `${input} B` : String(input))
    return Option.filter(Option.flatMap(size, ByteSize.toNumber), (value) => value >= 1024)
  }
)

/** How people write `true` and `false`. */
const booleans = new Map<unknown, boolean>([
  ...[true, "true", "1", "yes"].map((yes) => [yes, true] as const),
  ...[false, "false", "0", "no"].map((no) => [no, false] as const)
])

const flag = type<boolean>("flag", "true or false", (input) => Option.fromUndefinedOr(booleans.get(input)))

const list = (what: string, item: Pick<RegExp, "test">) =>
  type<ReadonlyArray<string>>("list", `an array of ${what} (or one string with commas between them)`, (input) => {
    const items: unknown = typeof input === "string" ? input.split(",") : input
    return Array.isArray(items) && items.every((each) => typeof each === "string" && item.test(each.trim()))
      // A header value never starts or ends with a blank, so a key with such a blank could never match.
      ? Option.some(items.map((each: string) => each.trim()))
      : Option.none()
  })
/** Keys, each alone or behind a name and a colon. A name without a key is refused. */
const keyList = list("keys, none of them empty, each alone or as name:key", /^(?![\w.-]{1,64}:\s*$)\S/)
/** Host names or IP addresses. An IPv6 address has brackets, as in a `Host` header. */
const hostNames = list("host names without scheme and port", /^(\[[\da-f:.]+\]|[^\s/\\:@*?#[\]]+)$/i)
/** Origins by RFC 6454, section 6.2. A sandboxed frame sends `null`. A slash at the end is accepted too. */
const webOrigins = list(
  "origins with their scheme, such as https://app.example.com, and without a path",
  /^(null|[a-z][a-z\d+.-]*:\/\/[^\s/@*?#]+\/?)$/i
)

/** An IP address, or one with the length of its prefix. */
const isNetwork = (text: string): boolean => {
  const [, address = "", prefix = "0"] = /^([\da-f.:]+)(?:\/(\d{1,3}))?$/i.exec(text) ?? []
  return Number(prefix) <= (isIPv6(address) ? 128 : isIPv4(address) ? 32 : -1)
}
const networks = list("IP addresses or networks, such as 10.0.0.7 or 10.0.0.0/8", { test: isNetwork })
/** Scope tokens by RFC 6749, section 3.3. They can stand in a quoted text of a header. */
const scopeToken = /^[!#-[\]-~]+$/
const scopeList = list("scopes without blanks, quotes and backslashes", scopeToken)
const audiences = list("audiences in ASCII without blanks, quotes and backslashes", scopeToken)
/** `none` and HMAC are not among them: a client that knows the public keys could make such a token. */
const publicKeyAlgorithms = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
  .concat("EdDSA", "Ed25519")
const algorithms = list(`any of ${publicKeyAlgorithms.join(", ")}`, new RegExp(`^(${publicKeyAlgorithms.join("|")})$`))

const texts = (allowed: string, pattern: Pick<RegExp, "test">) =>
  type<string>(
    "text",
    allowed,
    (input) => typeof input === "string" && pattern.test(input) ? Option.some(input) : Option.none()
  )
const text = texts("a string", /^/)
const address = texts("an address or a host name", /^[^\s/]+$/)
/** A file of keys or certificates. An empty path is refused: the gateway would serve without that protection, unnoticed. */
const file = texts("the path of a file, and not empty; leave the setting out if there is no file", /[^]/)
const headerName = texts("the name of a header, such as X-Forwarded-User", /^[\w!#$%&'*+.^`|~-]+$/)
const secretOfOthers = texts("a secret, and not empty", /\S/)
const name = texts("a name, and not empty", /\S/)
/** URLs without credentials, query and fragment. Quotes and backslashes would end a quoted text in a header. */
const urls = (allowed: string, scheme: RegExp) =>
  texts(allowed, { test: (text) => /^[^\s?#@"\\]*$/.test(text) && scheme.test(text) && URL.canParse(text) })
/** The URL of an authorization server. On plain HTTP to another machine, everyone on the way could make tokens. */
const issuer = urls(
  "an https: URL without a query, such as https://auth.example.com (http: only on this machine)",
  /^(https:\/\/|http:\/\/(localhost|127\.\d+\.\d+\.\d+|\[::1\])([:/]|$))/
)
const baseUrl = urls("an http: or https: URL without a query, such as https://mcp.example.com", /^https?:\/\//)
/** The length of a 128-bit key in hexadecimal. */
const secretText = texts("a secret of at least 32 characters", /^[^]{32}/)

const choice = <A extends string>(...choices: ReadonlyArray<A>) => {
  const make = type<A>(
    "choice",
    choices.map((each) => `"${each}"`).join(" or "),
    (input) => Option.fromUndefinedOr(choices.find((each) => each === input))
  )
  return (fallback: A, description: string): Setting<A, A> => ({ ...make(fallback, description), choices })
}

/** Settings of a session and its process. The entry of a back end may override each of them. */
export const backendSettings = {
  idleTimeToLive: duration("30 minutes", "A session without requests and streams ends after this"),
  streamLostTimeToLive: duration("15 minutes", "A silent client's session ends this long after its GET stream broke"),
  requestTimeout: duration("5 minutes", "A request is cancelled after this; each progress message restarts the time"),
  startTimeout: duration("1 minute", "A back end must answer initialize within this"),
  writeTimeout: duration("30 seconds", "A session ends if its back end leaves a message unread for this"),
  closeGrace: durationOrZero("2 seconds", "Wait between end of stdin, SIGTERM and SIGKILL when a process ends"),
  maxInFlight: count(100, "Requests of one session, or of one modern client, that may run at once"),
  maxLineBytes: bytes("16 MiB", "Longest message of a back end"),
  stderrLevel: choice("debug", "info", "warn")("debug", "Log level of the back end's stderr: debug, info or warn"),
  replayEvents: count(1000, "Messages that a session keeps for a client that resumes a stream"),
  replayBytes: bytes("4 MiB", "Bytes that a session keeps for a client that resumes a stream"),
  spares: integer(0)(0, "Processes started in advance for new sessions"),
  sessions: choice("client", "caller")(
    "client",
    "client: each session has its process; caller: sessions of one caller share"
  ),
  stateless: flag(false, "An idle session sleeps: its process ends, its id stays valid"),
  era: choice("auto", "legacy", "modern")("auto", "Era of the back end: legacy, modern, or auto to ask it"),
  maxLanes: count(8, "Most processes of one modern client"),
  parkedTimeToLive: duration("5 minutes", "A call that waits for its client's input is cancelled after this"),
  scopes: scopeList([], "Further scopes that a token needs to use this back end")
}

/**
 * Settings of OAuth. A file and a program write them in an object `auth`: `auth.issuer`. Elsewhere their names begin with `auth`:
 * `authIssuer`, `--auth-issuer`, `GATEWAY_AUTH_ISSUER`.
 */
export const authSettings = {
  issuer: issuer("", "Accept access tokens of the authorization server with this URL"),
  audience: audiences([], "A token must name one of these in aud; default: the URL that the client uses"),
  scopes: scopeList([], "Scopes that every token needs"),
  algorithms: {
    ...algorithms(publicKeyAlgorithms, "Accepted signatures of tokens"),
    shown: "every one with a public key"
  },
  clockTolerance: shortTime("2 seconds", "Tokens are accepted this long before nbf and after exp"),
  clientId: name("", "The gateway's own client ID at the authorization server, to ask about opaque tokens"),
  clientSecret: secretOfOthers("", "The secret of authClientId")
}

type Flat<T> = { readonly [K in keyof T & string as `auth${Capitalize<K>}`]: T[K] }

/** The name outside the object `auth`: `authIssuer` for `issuer`. */
const authName = (name: string): string => `auth${name.slice(0, 1).toUpperCase()}${name.slice(1)}`

// `authName` makes the names of the type.
const flatAuthSettings = Record.mapKeys(authSettings, authName) as Flat<typeof authSettings>

/** Settings of the gateway as a whole. */
export const gatewaySettings = {
  host: address("127.0.0.1", "The address to listen on"),
  port: integer(0, 65535)(8420, "The port to listen on; 0 takes a free one"),
  insecure: flag(false, "Allow an address that other machines reach, without authentication"),
  tlsCert: file("", "PEM file of the certificate; serves HTTPS, together with --tls-key"),
  tlsKey: file("", "PEM file of the private key"),
  keys: keyList([], "Clients show one of these; name:key gives a key a name"),
  keysFile: file("", "File of further keys for clients, one a line"),
  trustedProxies: networks([], "Proxies that authenticate callers, by address or network"),
  proxyHeader: headerName("", "The header in which these proxies name the caller, such as X-Forwarded-User"),
  publicUrl: baseUrl("", "URL at which clients reach the gateway, without /mcp; default: from the request's Host"),
  ...flatAuthSettings,
  adminKeys: keyList([], "Operators' keys, for the page, /sessions and /metrics"),
  allowedHosts: hostNames([], "Further host names, without port, that clients may use in the URL"),
  allowedOrigins: webOrigins([], "Origins of web pages that may use the gateway, such as https://app.example.com"),
  maxSessions: count(1000, "Most sessions at once; when full, the longest idle one is ended"),
  maxSessionsPerBackend: count(1000, "Most sessions of one back end; when full, new ones are refused"),
  // Infinity means unset; `sessionsPerCaller` computes the default.
  maxSessionsPerKey: {
    ...count(Infinity, "Most sessions of one caller; when full, its longest idle one is ended"),
    shown: "half of maxSessions if there may be several callers"
  },
  maxParked: count(1000, "Most calls at once that wait for their client's input"),
  maxParkedPerKey: count(100, "Most calls at once of one caller that wait for its input"),
  stateKey: secretText("", "Seals requestState; without it a random key that ends with the process"),
  shareWithoutKeys: flag(false, "Without keys, modern clients of all users and machines may share processes"),
  maxAsleep: count(100_000, "Most sleeping sessions; when full, the oldest is ended"),
  asleepTimeToLive: duration("24 hours", "A sleeping session ends after this"),
  acquireTimeout: durationOrZero("5 seconds", "Longest wait of initialize when all sessions are in use"),
  maxBodyBytes: bytes("4 MiB", "Largest request body"),
  maxHeaderBytes: bytes("16 KiB", "Largest request header"),
  headersTimeout: duration("10 seconds", "A client must send its whole header within this"),
  bodyTimeout: duration("1 minute", "A client must send its whole request within this"),
  keepAliveTimeout: duration(
    "75 seconds",
    "An unused connection is closed after this; a balancer must close it earlier"
  ),
  streamAfter: duration("5 seconds", "A request unanswered by then gets an event stream; at most heartbeat"),
  heartbeat: duration("15 seconds", "A silent stream gets a comment at least this often, so that no proxy cuts it"),
  stallTimeout: duration("30 seconds", "A client that does not read its stream for this is disconnected"),
  cleanupInterval: duration("10 seconds", "Interval between searches for expired sessions"),
  drainTimeout: durationOrZero("10 seconds", "Longest time for running requests when the gateway stops"),
  cluster: flag(false, "Run as one of several replicas; needs DATABASE_URL, GATEWAY_STATE_KEY and --replica-address"),
  replicaAddress: text("", "host:port at which the other replicas, and only they, reach this one"),
  replicaListen: text("", "host:port to listen on for other replicas, if not --replica-address"),
  shardLockExpiration: lockTime("35 seconds", "A silent replica's sessions are taken over after this; equal on all"),
  leaveDelay: durationOrZero("3 seconds", "A stopping replica is not ready, but still serves, for this")
}

type Authentication = Pick<GatewaySettings, "authIssuer" | "keys" | "proxyHeader">

/** True if clients must say who they are. */
export const isAuthenticated = ({ authIssuer, keys, proxyHeader }: Authentication): boolean =>
  keys.length > 0 || authIssuer !== "" || proxyHeader !== ""

/** True if there may be several callers. */
export const hasSeveralCallers = ({ authIssuer, keys, proxyHeader }: Authentication): boolean =>
  keys.length > 1 || authIssuer !== "" || proxyHeader !== ""

/** True if clients need a key. With an authorization server they get a token by themselves. */
export const needsKey = ({ authIssuer, keys }: Authentication): boolean => keys.length > 0 && authIssuer === ""

/** Most sessions of one caller. With several callers the default is half of `maxSessions`, so no caller can take every place. */
export const sessionsPerCaller = (
  { maxSessions, maxSessionsPerKey }: GatewaySettings,
  hasSeveralCallers: boolean
): number => maxSessionsPerKey < Infinity || !hasSeveralCallers ? maxSessionsPerKey : Math.ceil(maxSessions / 2)

type Table = Readonly<Record<string, Setting<unknown, unknown>>>
type Values<T> = { readonly [K in keyof T]: T[K] extends Setting<infer A, unknown> ? A : never }
type Inputs<T> = {
  readonly [K in keyof T]?: T[K] extends Setting<unknown, infer Input> ? Input | undefined : never
}

export type BackendSettings = Values<typeof backendSettings>
export type GatewaySettings = BackendSettings & Values<typeof gatewaySettings>
/** The settings of a back end, as a program gives them. */
export interface BackendInput extends Inputs<typeof backendSettings> {}
/** The settings of OAuth, as a program gives them. */
export interface AuthInput extends Inputs<typeof authSettings> {}
/** All settings, as a program gives them. */
export interface GatewayInput
  extends BackendInput, Inputs<Omit<typeof gatewaySettings, keyof typeof flatAuthSettings>>
{
  /** Accept the access tokens of an OAuth authorization server. */
  readonly auth?: AuthInput | undefined
}

/** Moves the settings of a program or a file out of the object `auth`: `auth.issuer` becomes `authIssuer`. */
export const flat = (
  { auth, ...others }: { readonly auth?: object | undefined }
): Readonly<Record<string, unknown>> => ({
  ...others,
  ...Record.mapKeys({ ...auth }, authName)
})

/** The name of a setting as a program or a file writes it: `auth.issuer` for `authIssuer`. */
export const writtenName = (name: string): string => {
  const nested = Object.keys(authSettings).find((each) => authName(each) === name)
  return nested === undefined ? name : `auth.${nested}`
}

/** How long a response may be silent before its first byte. */
export const firstSilence = (
  { heartbeat, streamAfter }: Pick<GatewaySettings, "heartbeat" | "streamAfter">
): Duration.Duration => Duration.min(streamAfter, heartbeat)

/** All settings by name. */
export const all = { ...backendSettings, ...gatewaySettings }

/** Settings that hold secrets. None is a flag, because everyone on the machine can read a command line. */
export const secret: ReadonlyArray<string> = ["keys", "adminKeys", "stateKey", "authClientSecret"]
/** Settings whose empty value is a fault. Read as unset, it would leave the gateway unprotected. */
export const protecting: ReadonlyArray<string> = [...secret, "keysFile", "tlsCert", "tlsKey"]
  .concat("authIssuer", "authScopes", "scopes", "trustedProxies", "proxyHeader")

export const flagName = (name: string): string => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
export const variableName = (name: string): string =>
  `GATEWAY_${name.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()}`

/** Says what a setting's value must be, and that a duration needs a unit if `given` has none. */
export const mustBe = ({ allowed, decode, kind }: Setting<unknown, unknown>, given: unknown): string => {
  const isBare = kind === "duration" && (typeof given === "number" || typeof given === "string") &&
    /^\s*\d+(\.\d+)?\s*$/.test(String(given))
  // The message does not repeat the value: a variable may hold a secret by mistake.
  const isDuration = isBare && Option.isSome(decode(`${String(given).trim()} seconds`))
  return isDuration ? `must be ${allowed}; it needs a unit, such as "seconds"` : `must be ${allowed}`
}

/**
 * Decodes the settings of `table`. The value of a setting that `input` does not have is that of `base`, or its default. Reports each
 * fault through `fault`.
 */
export const decode = <T extends Table>(
  table: T,
  input: Readonly<Record<string, unknown>>,
  fault: (name: string, message: string) => void,
  base?: Values<T>
): Values<T> => {
  const valueOf = (setting: Setting<unknown, unknown>, name: keyof T & string) => {
    const given = input[name]
    const otherwise = base?.[name] ?? setting.default
    if (given === undefined) return otherwise
    const value = setting.decode(given)
    if (Option.isNone(value)) fault(name, mustBe(setting, given))
    return Option.getOrElse(value, () => otherwise)
  }
  // Each value comes from `base` or from the setting of its own name.
  return Record.map(table, valueOf) as Values<T>
}

/** The properties of an object that are not `undefined`. */
export const given = (input: object): Readonly<Record<string, unknown>> =>
  Object.fromEntries(Object.entries(input).filter(([, value]) => Predicate.isNotUndefined(value)))

/** The names of the settings of the gateway as a whole whose values differ. */
export const differing = (a: GatewaySettings, b: GatewaySettings): ReadonlyArray<string> =>
  Struct.keys(gatewaySettings).filter((name) => JSON.stringify(a[name]) !== JSON.stringify(b[name]))
