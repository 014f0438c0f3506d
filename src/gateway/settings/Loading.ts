/** Reads what the command is given: its flags, the environment, and the files that these name. */
import { Duration, Effect, FileSystem, Option, Redacted, Result, Schema } from "effect"
import { createRequire } from "node:module"
import { isIPv6 } from "node:net"
import { createSecureContext } from "node:tls"
import type * as Backends from "../backends/Backends.ts"
import * as Access from "../http/Access.ts"
import * as CommandName from "./CommandName.ts"
import * as Config from "./Config.ts"
import * as Settings from "./Settings.ts"

/** Something that the person at the command line can mend; told without a stack. */
export class UsageError extends Schema.TaggedError<UsageError>()("UsageError", { message: Schema.String }) {}

const embedded: Option.Option<Backends.StdioEntry> = Option.map(
  Option.liftThrowable(() =>
    createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")
  )(),
  (path) => ({ command: process.execPath, args: [path, "stdio"] })
)

const waysToServe = [
  "  effect-session-pool -- COMMAND ARGS…     one stdio server",
  "  effect-session-pool --config FILE        those of an mcpServers file"
].join("\n")

export interface Input {
  readonly config: Option.Option<string>
  readonly check: boolean
  readonly command: ReadonlyArray<string>
  readonly settings: Readonly<Record<string, Option.Option<unknown>>>
}

/** What is to be served: a command, a file, or the embedded default. */
const entries = Effect.fnUntraced(function*({ command, config }: Input) {
  const [program, ...args] = command
  if (program !== undefined && Option.isSome(config)) {
    return yield* new UsageError({ message: "Give either --config FILE or -- COMMAND, not both." })
  }
  if (program !== undefined) return { [CommandName.fromCommand(command)]: { command: program, args } }
  if (Option.isSome(config)) return {}
  if (Option.isSome(embedded)) return { everything: embedded.value }
  return yield* new UsageError({ message: `There is nothing to serve yet. Say what:\n${waysToServe}` })
})

const readText = (file: string, what: string) =>
  Effect.mapError(
    Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(file)),
    (error) => {
      const why = error.reason._tag
      const next = why === "NotFound" ? "Is the path right?" : "Is it a file, and may this user read it?"
      return new UsageError({ message: `${what} ${file} cannot be read (${why}). ${next}` })
    }
  )

/** Reads and checks everything that there is to read. Independent faults are told together. */
export const load = Effect.fnUntraced(function*(input: Input) {
  const served = yield* entries(input)
  const file = Option.getOrUndefined(input.config)
  const loaded = Config.load({
    flags: Object.fromEntries(
      Object.entries(input.settings).map(([name, value]) => [name, Option.getOrUndefined(value)])
    ),
    environment: process.env,
    file: file === undefined ? undefined : { name: file, text: yield* readText(file, "The configuration") },
    entries: served
  })
  if (loaded instanceof Config.InvalidConfig) return yield* loaded
  const { backends, settings, warnings } = loaded
  const named = { keys: keysOf(settings), tls: tlsOf(settings), cluster: clusterOptions(settings) }
  const read = yield* Effect.all(named, { mode: "result" })
  const faults = [read.keys, read.tls, read.cluster].flatMap((each) =>
    Option.match(Result.getFailure<unknown, UsageError>(each), { onNone: () => [], onSome: ({ message }) => [message] })
  )
  if (faults.length > 0) return yield* new UsageError({ message: faults.join("\n") })
  const { cluster, keys, tls } = yield* Effect.fromResult(Result.all(read))
  const config = { backends, settings: { ...settings, keys } }
  const weak = [
    ...shortKeys("keys", keys),
    ...shortKeys("adminKeys", settings.adminKeys),
    ...(yield* readByOthers(settings.keysFile))
  ]
  return { config, warnings: [...warnings, ...unreachable(settings), ...weak], tls, cluster }
})

/** In characters: 16 random hexadecimal digits have 64 bits. */
const leastKeyLength = 16

const shortKeys = (name: string, keys: ReadonlyArray<string>): ReadonlyArray<string> => {
  const short = keys.filter((key) => key.length < leastKeyLength).length
  return short === 0
    ? []
    : [
      `${name}: ${short} of ${keys.length} shorter than ${leastKeyLength} characters, which may be guessed; ` +
      "`openssl rand -hex 32` makes a good key"
    ]
}

/** Warns if every user of this machine may read the file of keys. Windows has no such modes. */
const readByOthers = Effect.fnUntraced(function*(keysFile: string) {
  if (keysFile === "" || process.platform === "win32") return []
  const fs = yield* FileSystem.FileSystem
  const mode = yield* Effect.match(fs.stat(keysFile), { onFailure: () => 0, onSuccess: (info) => info.mode })
  return (mode & 0o004) === 0
    ? []
    : [`keysFile: every user of this machine may read ${keysFile}; chmod 600 keeps it to its owner`]
})

/** That no other machine gets an answer, though the gateway listens for them: a request is addressed to a name. */
const unreachable = ({ allowedHosts, host }: Settings.GatewaySettings): ReadonlyArray<string> =>
  Access.isEveryAddress(host) && allowedHosts.length === 0
    ? [
      `--host ${host} without --allowed-hosts: only requests to ${Access.loopbackHosts.join(", ")} are answered, ` +
      "others get 403. Name what clients will write in the URL, such as --allowed-hosts mcp.example.com"
    ]
    : []

/** The keys of clients. None at all is refused where other machines reach the gateway, unless `--insecure`. */
const keysOf = Effect.fnUntraced(function*({ host, insecure, keys, keysFile }: Settings.GatewaySettings) {
  const lines = keysFile === "" ? [] : (yield* readText(keysFile, "The file of keys")).split("\n")
  const all = [...keys, ...lines.map((line) => line.trim()).filter((line) => !/^(#|$)/.test(line))]
  if (keysFile !== "" && all.length === 0) {
    return yield* new UsageError({
      message: `The file of keys ${keysFile} holds no key; nobody could come in. Write one a line.`
    })
  }
  if (!Access.isLoopback(host) && all.length === 0 && !insecure) {
    return yield* new UsageError({
      message: `Other machines reach ${host}, and the gateway would serve anyone there. Set ` +
        `${Settings.variableName("keys")} or --${Settings.flagName("keysFile")}, listen on 127.0.0.1, or say ` +
        "--insecure if that is what you want."
    })
  }
  return all
})

/** Refuses an empty file: Node takes it for none, and would serve without it. */
const readPem = (file: string, what: string) =>
  Effect.filterOrFail(
    readText(file, what),
    (text) => text.trim() !== "",
    () => new UsageError({ message: `${what} ${file} is empty; nobody could connect. It must be PEM.` })
  )

const tlsOf = Effect.fnUntraced(function*({ tlsCert, tlsKey }: Settings.GatewaySettings) {
  if (tlsCert === "" && tlsKey === "") return undefined
  if (tlsCert === "" || tlsKey === "") {
    const missing = Settings.flagName(tlsCert === "" ? "tlsCert" : "tlsKey")
    return yield* new UsageError({ message: `TLS needs both a certificate and its key: give --${missing} FILE too.` })
  }
  const tls = {
    cert: yield* readPem(tlsCert, "The certificate"),
    key: yield* readPem(tlsKey, "The certificate's key")
  }
  const unusable = Result.getFailure(Result.try(() => createSecureContext(tls)))
  if (Option.isSome(unusable)) {
    return yield* new UsageError({
      message: `${tlsCert} and ${tlsKey} cannot be used for TLS (${
        String(unusable.value)
      }). Both must be PEM, and belong together.`
    })
  }
  return tls
})

/** What one of several replicas needs to know, if this is to be one. */
const clusterOptions = Effect.fnUntraced(function*(settings: Settings.GatewaySettings) {
  const { cluster, drainTimeout, leaveDelay, replicaAddress, replicaListen, shardLockExpiration, stateKey } = settings
  if (!cluster) return undefined
  const databaseUrl = process.env["DATABASE_URL"] ?? ""
  const missing = [
    ...databaseUrl === "" ? ["DATABASE_URL, as postgresql://user:password@host:5432/database"] : [],
    ...stateKey === ""
      ? [
        `${
          Settings.variableName("stateKey")
        }, a secret of at least 32 characters that all replicas share, such as of \`openssl rand -hex 32\``
      ]
      : [],
    ...replicaAddress === "" ? ["--replica-address HOST:PORT, where the other replicas reach this one"] : []
  ]
  if (missing.length > 0) {
    return yield* new UsageError({ message: `--cluster needs more:\n${missing.map((each) => `  ${each}`).join("\n")}` })
  }
  const address = yield* replicaAt("replicaAddress", replicaAddress)
  if (Access.isEveryAddress(address.host)) {
    return yield* new UsageError({
      message: `--replica-address is where the other replicas reach this one, which ${address.host} is not. ` +
        `Give its own address there, and --replica-listen ${replicaAddress} to listen on all.`
    })
  }
  const expiration = Duration.toSeconds(shardLockExpiration)
  if (expiration < leastLockExpiration || !Number.isFinite(expiration)) {
    return yield* new UsageError({
      message:
        `--shard-lock-expiration must be at least ${leastLockExpiration} seconds, because replicas look for each ` +
        `other every 2 seconds, and not infinite, or nothing would be taken over; it is ${
          Duration.format(shardLockExpiration)
        }.`
    })
  }
  const listen = replicaListen === "" ? address : yield* replicaAt("replicaListen", replicaListen)
  return {
    databaseUrl: Redacted.make(databaseUrl),
    address,
    listen,
    stateKey,
    shardLockExpiration,
    leaveDelay,
    drainTimeout
  }
})

/** In seconds: a lock that is said to be alive three times in it, each with room for a slow database. */
const leastLockExpiration = 5

/** A host and a port. An address of IPv6 may do without its brackets: Kubernetes gives a pod's as it is. */
export const replicaAt = (name: string, text: string) => {
  const [, bracketed, bare = "", port = ""] = /^(?:\[([^[\]]+)\]|([^[\]]+)):(\d{1,5})$/.exec(text) ?? []
  const host = bracketed ?? bare
  const isHost = isIPv6(host) || (bracketed === undefined && /^[\w.-]+$/.test(host))
  return isHost && Number(port) > 0 && Number(port) < 65536
    ? Effect.succeed({ host, port: Number(port) })
    // Not repeated, as in `Settings.mustBe`.
    : new UsageError({
      message:
        `--${Settings.flagName(name)} must be host:port, such as 10.0.0.7:8421 or [fd00::7]:8421, and nothing else: ` +
        "no scheme, no path and no blanks."
    })
}
