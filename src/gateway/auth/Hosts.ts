/**
 * Checks the host, the origin and the key of each request (MCP specification, basic/transports, "Security Warning").
 */
import { createHash, timingSafeEqual } from "node:crypto"
import { isIPv6 } from "node:net"

/** Host names of this machine, as URLs write them. The gateway always serves them. */
export const loopbackHosts = ["127.0.0.1", "localhost", "[::1]"]

/** IPv4 addresses as `inet_aton` accepts them: up to four numbers, each decimal, octal or hexadecimal. */
const numbers = /^(0x[\da-f]+|\d+)(\.(0x[\da-f]+|\d+)){0,3}$/i

/** The address that a listener on `host` gets, as URLs write it. Undefined for a name. */
const addressOf = (host: string): string | undefined => {
  const written = isIPv6(host) ? `[${host.replace(/%.*/, "")}]` : numbers.test(host) ? host : ""
  return URL.parse(`http://${written}`)?.hostname
}

/** 127.0.0.0/8, ::1, and 127.0.0.0/8 mapped into IPv6. */
const ownAddresses = /^(127\.|\[::1\]$|\[::ffff:7f..:)/

/**
 * True if no other machine can reach the host. Of names only `localhost` counts: any other may resolve to any machine.
 */
export const isLoopback = (host: string): boolean =>
  host.toLowerCase() === "localhost" || ownAddresses.test(addressOf(host) ?? "")

/** True for an address that means every interface: a server can listen there, but no client can connect to it. */
export const isEveryAddress = (host: string): boolean =>
  ["0.0.0.0", "[::]", "[::ffff:0:0]"].includes(addressOf(host) ?? "")

/** A configured host as URLs write it: an address in its normal form, a name unchanged. */
export const inUrl = (host: string): string => addressOf(host) ?? host

/**
 * The ways a client may write a host in a header: as configured, or as URLs write it (a short address, a name in
 * punycode).
 */
const spellingsOfHost = (host: string): ReadonlyArray<string> => {
  const written = isIPv6(host) ? `[${host}]` : host
  return [written.toLowerCase(), URL.parse(`http://${inUrl(host)}`)?.hostname ?? written]
}

/**
 * The ways a client may write an origin: as configured, or as browsers send it (no default port, a name in punycode).
 */
const spellingsOfOrigin = (origin: string): ReadonlyArray<string> => {
  const written = origin.toLowerCase().replace(/\/$/, "")
  const sent = URL.parse(origin)?.origin ?? "null"
  // Browsers send `null` for every opaque origin, so `null` is allowed only if the operator lists it.
  return sent === "null" ? [written] : [written, sent]
}

export interface Options {
  readonly host: string
  /** `host:port`, or empty. */
  readonly replicaAddress: string
  readonly allowedHosts: ReadonlyArray<string>
  readonly allowedOrigins: ReadonlyArray<string>
  readonly keys: ReadonlyArray<string>
  readonly adminKeys: ReadonlyArray<string>
}

export type Verdict =
  | { readonly _tag: "Granted"; readonly principal: string }
  | { readonly _tag: "Refused"; readonly status: 401 | 403; readonly message: string }

export interface Access {
  /** Checks that the gateway serves the host in the header `Host`. Guards against DNS rebinding. */
  readonly host: (header: string | undefined) => Verdict
  /** Checks that pages of this origin may use the gateway. Pages of the gateway itself always may. */
  readonly origin: (header: string | undefined) => Verdict
  /** True if `allowedOrigins` lists the origin, so that its pages get CORS headers. */
  readonly isListedOrigin: (origin: string) => boolean
  /** Checks a client's key. The principal is a digest of the key, or empty if the gateway asks for no keys. */
  readonly client: (authorization: string | undefined) => Verdict
  /** Checks an operator's key. */
  readonly operator: (authorization: string | undefined) => Verdict
}

const granted = (principal: string): Verdict => ({ _tag: "Granted", principal })
const refused = (status: 401 | 403, message: string): Verdict => ({ _tag: "Refused", status, message })

export const howToShowKey = "Send one of the gateway's keys as Authorization: Bearer KEY"

/** The `WWW-Authenticate` header of a 401: it says how to send a key. */
export const challengeOf = ({ message, status }: Extract<Verdict, { _tag: "Refused" }>): Record<string, string> =>
  status === 401 ? { "www-authenticate": `Bearer realm="effect-session-pool", error_description="${message}"` } : {}

const digest = (text: string): Buffer => createHash("sha256").update(text).digest()

/** The index of the key that was sent, or -1. Compares the digests of all keys in constant time. */
const match = (keys: ReadonlyArray<Buffer>, authorization: string | undefined): number => {
  const shown = digest(/^bearer +(.+)$/i.exec(authorization ?? "")?.[1]?.trim() ?? "")
  let found = -1
  for (const [i, key] of keys.entries()) if (timingSafeEqual(key, shown)) found = i
  return found
}

const withoutPort = (host: string): string => host.replace(/:\d+$/, "")

export const make = (options: Options): Access => {
  // Monitoring asks each replica at its own address.
  const replica = options.replicaAddress === "" ? [] : [withoutPort(options.replicaAddress)]
  const hosts = [...loopbackHosts, options.host, ...replica, ...options.allowedHosts].flatMap(spellingsOfHost)
  const origins = options.allowedOrigins.flatMap(spellingsOfOrigin)
  const isListedOrigin = (origin: string) => origins.includes(origin.toLowerCase())
  const keys = options.keys.map(digest)
  const adminKeys = options.adminKeys.map(digest)
  return {
    host: (header) =>
      hosts.includes(withoutPort(header ?? "").toLowerCase())
        ? granted("")
        : refused(403, "The gateway does not serve this Host; add it to the setting allowedHosts"),
    origin: (header) => {
      if (header === undefined || isListedOrigin(header)) return granted("")
      const name = /^https?:\/\/(\[[^\]]*\]|[^:/]*)(:\d+)?$/.exec(header.toLowerCase())?.[1]
      return name !== undefined && hosts.includes(name)
        ? granted("")
        : refused(403, "The gateway does not allow this Origin; add it to the setting allowedOrigins")
    },
    isListedOrigin,
    client: (authorization) => {
      if (keys.length === 0) return granted("")
      const key = keys[match(keys, authorization)]
      return key === undefined
        ? refused(401, howToShowKey)
        : granted(key.toString("hex").slice(0, 32))
    },
    operator: (authorization) => {
      if (adminKeys.length === 0) {
        return keys.length === 0
          ? granted("")
          : refused(403, "The gateway has keys for clients but none for operators; add one to the setting adminKeys")
      }
      return match(adminKeys, authorization) >= 0
        ? granted("")
        : refused(401, "Send one of the operators' keys (adminKeys) as Authorization: Bearer KEY")
    }
  }
}
