/** Loads the configuration of the command from its flags, the environment, and the files that these name. */
import { Data, Effect, FileSystem, Option, Record, Redacted, Result } from "effect"
import { createRequire } from "node:module"
import { isIPv6 } from "node:net"
import { resolve } from "node:path"
import { createSecureContext } from "node:tls"
import * as Hosts from "../auth/Hosts.ts"
import * as Keys from "../auth/Keys.ts"
import * as Settings from "../settings/Settings.ts"
import type * as Backends from "../transports/Backends.ts"
import * as CommandName from "./CommandName.ts"
import * as Config from "./Config.ts"
import type { Input } from "./Flags.ts"

/** A mistake that the user of the command can correct. The command prints its message without a stack. */
export class UsageError extends Data.TaggedError("UsageError")<{ readonly message: string }> {}

const embedded: Option.Option<Backends.StdioEntry> = Option.map(
  Option.liftThrowable(() =>
    createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")
  )(),
  (path) => ({ command: process.execPath, args: [path, "stdio"] })
)

export const refuse = (message: string) => new UsageError({ message })

/** The back ends that come without a file: that of the command after `--`, or the embedded default. Empty with `--config`. */
const entries = Effect.fnUntraced(function*({ command, config, name }: Input) {
  const [program, ...args] = command
  if (program !== undefined) {
    if (Option.isSome(config)) return yield* refuse("Give either --config FILE or -- COMMAND, not both.")
    return { [Option.getOrElse(name, () => CommandName.fromCommand(command))]: { command: program, args } }
  }
  if (Option.isSome(name)) return yield* refuse("--name names the server of -- COMMAND. Give both.")
  if (Option.isSome(config)) return {}
  if (Option.isSome(embedded)) return { everything: embedded.value }
  return yield* refuse(
    "There is no server to serve. Name one:\n" +
      "  effect-session-pool -- COMMAND ARGS…     one stdio server\n" +
      "  effect-session-pool --config FILE        the servers of an mcpServers file"
  )
})

const readText = (file: string, what: string) =>
  Effect.mapError(
    Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(file)),
    (error) => {
      const why = error.reason._tag
      const next = why === "NotFound" ? "Is the path right?" : "Is it a file, and may this user read it?"
      return refuse(`${what} ${resolve(file)} cannot be read (${why}). ${next}`)
    }
  )

export type Loaded = Effect.Success<ReturnType<typeof load>>

/** Reads and checks the whole configuration. Reports independent faults together. */
export const load = Effect.fnUntraced(function*(input: Input) {
  const served = yield* entries(input)
  const file = Option.getOrUndefined(input.config)
  const { backends, settings, warnings } = yield* Config.load({
    flags: Record.map(input.settings, Option.getOrUndefined),
    environment: process.env,
    file: file === undefined ? undefined : { name: file, text: yield* readText(file, "The configuration") },
    entries: served
  })
  const named = { keys: keysOf(settings), tls: tlsOf(settings), cluster: clusterOptions(settings) }
  const read = yield* Effect.all(named, { mode: "result" })
  const results: ReadonlyArray<Result.Result<unknown, UsageError>> = Object.values(read)
  const faults = results.flatMap((each) => Result.isFailure(each) ? [each.failure.message] : [])
  if (faults.length > 0) return yield* refuse(faults.join("\n"))
  const { cluster, keys, tls } = yield* Effect.fromResult(Result.all(read))
  const config = { backends, settings: { ...settings, keys } }
  const weak = [
    ...shortKeys("keys", keys),
    ...shortKeys("adminKeys", settings.adminKeys),
    ...(yield* readByOthers(settings.keysFile))
  ]
  // The back ends that cannot be reached from this machine, each with what to do.
  const missing = [...backends.values()].flatMap(({ entry, mask, name, transport }) => {
    const reason = transport.missing?.(entry, mask)
    return reason === undefined ? [] : [`${name}: ${reason}`]
  })
  return { config, warnings: [...warnings, ...unreachable(settings), ...weak], missing, tls, cluster }
})

/** In characters. 16 random hexadecimal digits have 64 bits. */
const leastKeyLength = 16

const shortKeys = (name: string, keys: ReadonlyArray<string>): ReadonlyArray<string> => {
  const short = keys.filter((key) => Keys.parse(key).value.length < leastKeyLength).length
  const what =
    `${name}: ${short} of ${keys.length} keys are shorter than ${leastKeyLength} characters and may be guessed`
  return short === 0 ? [] : [`${what}; \`openssl rand -hex 32\` makes a good key`]
}

/** Warns if every user of this machine may read the file of keys. */
const readByOthers = Effect.fnUntraced(function*(keysFile: string) {
  if (keysFile === "") return []
  const fs = yield* FileSystem.FileSystem
  const mode = yield* Effect.match(fs.stat(keysFile), { onFailure: () => 0, onSuccess: (info) => info.mode })
  return (mode & 0o004) === 0
    ? []
    : [`keysFile: every user of this machine may read ${keysFile}; chmod 600 restricts it to its owner`]
})

/** Warns if the gateway listens for other machines but refuses their requests, because no host name of it is allowed. */
const unreachable = ({ allowedHosts, host }: Settings.GatewaySettings): ReadonlyArray<string> =>
  Hosts.isEveryAddress(host) && allowedHosts.length === 0
    ? [
      `--host ${host} without --allowed-hosts: the gateway answers requests to ${Hosts.loopbackHosts.join(", ")}, ` +
      "and all others with 403. Allow the host name in the clients' URL, such as --allowed-hosts mcp.example.com"
    ]
    : []

/** The keys of clients. If other machines reach the gateway, clients must say who they are, unless `--insecure` is set. */
const keysOf = Effect.fnUntraced(function*(settings: Settings.GatewaySettings) {
  const { host, insecure, keys, keysFile } = settings
  const lines = keysFile === "" ? [] : (yield* readText(keysFile, "The file of keys")).split("\n")
  const all = [...keys, ...lines.map((line) => line.trim()).filter((line) => !/^(#|$)/.test(line))]
  if (Option.isNone(Settings.gatewaySettings.keys.decode(all))) {
    return yield* refuse(`The file of keys ${keysFile} has a line with a name and no key. Write name:key.`)
  }
  if (keysFile !== "" && all.length === 0) {
    return yield* refuse(
      `The file of keys ${keysFile} holds no key, so no client could connect. Write one key per line.`
    )
  }
  if (!Hosts.isLoopback(host) && !Settings.isAuthenticated({ ...settings, keys: all }) && !insecure) {
    return yield* refuse(
      `Other machines reach ${host}, and the gateway would serve them without a key. Set GATEWAY_KEYS, --keys-file, ` +
        "--auth-issuer or --proxy-header, listen on 127.0.0.1, or allow it with --insecure."
    )
  }
  return all
})

const tlsOf = Effect.fnUntraced(function*({ tlsCert, tlsKey }: Settings.GatewaySettings) {
  if (tlsCert === "" && tlsKey === "") return undefined
  if (tlsCert === "" || tlsKey === "") {
    const missing = tlsCert === "" ? "--tls-cert" : "--tls-key"
    return yield* refuse(`TLS needs both a certificate and its key: give ${missing} FILE too.`)
  }
  const tls = {
    cert: yield* readText(tlsCert, "The certificate"),
    key: yield* readText(tlsKey, "The certificate's key")
  }
  const unusable = (cause: unknown) =>
    refuse(
      `${tlsCert} and ${tlsKey} cannot be used for TLS (${String(cause)}). ` +
        "Both must be PEM, and the key must belong to the certificate."
    )
  // Node ignores an empty text, and would serve without it.
  for (const text of Object.values(tls)) if (text.trim() === "") return yield* unusable("one of them is empty")
  yield* Effect.try({ try: () => createSecureContext(tls), catch: unusable })
  return tls
})

/** The options of a replica. `undefined` without `--cluster`. */
const clusterOptions = Effect.fnUntraced(function*(settings: Settings.GatewaySettings) {
  const { cluster, replicaAddress, replicaListen, stateKey } = settings
  if (!cluster) return undefined
  const databaseUrl = process.env["DATABASE_URL"] ?? ""
  const needed = [
    [databaseUrl, "DATABASE_URL, as postgresql://user:password@host:5432/database"],
    [
      stateKey,
      "GATEWAY_STATE_KEY, a secret of at least 32 characters that all replicas share; `openssl rand -hex 32` makes one"
    ],
    [replicaAddress, "--replica-address HOST:PORT, where the other replicas reach this one"]
  ]
  const missing = needed.flatMap(([value, what]) => value === "" ? [`\n  ${what}`] : [])
  if (missing.length > 0) return yield* refuse(`--cluster needs more:${missing.join("")}`)
  const address = yield* replicaAt("replicaAddress", replicaAddress)
  if (Hosts.isEveryAddress(address.host)) {
    return yield* refuse(
      `--replica-address is where the other replicas reach this one, and they cannot reach ${address.host}. ` +
        `Give this replica's own address, and --replica-listen ${replicaAddress} to listen on every address.`
    )
  }
  const listen = replicaListen === "" ? address : yield* replicaAt("replicaListen", replicaListen)
  return { ...settings, databaseUrl: Redacted.make(databaseUrl), address, listen }
})

/** Parses a host and a port. An IPv6 address needs no brackets, because Kubernetes gives a pod's address without them. */
export const replicaAt = (name: string, text: string) => {
  const [, bracketed, bare = "", port = ""] = /^(?:\[([^[\]]+)\]|([^[\]]+)):(\d{1,5})$/.exec(text) ?? []
  const host = bracketed ?? bare
  const isHost = isIPv6(host) || (bracketed === undefined && /^[\w.-]+$/.test(host))
  return isHost && Number(port) > 0 && Number(port) < 65536
    ? Effect.succeed({ host, port: Number(port) })
    // The message does not repeat the text, for the reason in `Settings.mustBe`.
    : refuse(
      `--${Settings.flagName(name)} must be host:port, such as 10.0.0.7:8421 or [fd00::7]:8421, ` +
        "without a scheme, a path or blanks."
    )
}
