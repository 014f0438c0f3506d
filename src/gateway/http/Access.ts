/** Who may come in: host, origin and key of a request (MCP specification, basic/transports, "Security Warning"). */
import { createHash, timingSafeEqual } from "node:crypto"
import { isIPv6 } from "node:net"

/** The names of this machine, as they stand in a URL; they are always served. */
export const loopbackHosts = ["127.0.0.1", "localhost", "[::1]"]

/** Numbers that the system's `inet_aton` takes for an address of IPv4: fewer than four, octal, hexadecimal. */
const numbers = /^(0x[\da-f]+|\d+)(\.(0x[\da-f]+|\d+)){0,3}$/i

/** The address that a listener on a host gets, in the one form that URLs have for it; none for a name. */
const addressOf = (host: string): string | undefined => {
  const written = isIPv6(host) ? `[${host.replace(/%.*/, "")}]` : numbers.test(host) ? host : ""
  return URL.parse(`http://${written}`)?.hostname
}

/** 127.0.0.0/8, ::1, and the first as IPv6 writes it. */
const ownAddresses = /^(127\.|\[::1\]$|\[::ffff:7f..:)/

/** Only what no other machine can reach: a name is that of any machine, but for `localhost`. */
export const isLoopback = (host: string): boolean =>
  host.toLowerCase() === "localhost" || ownAddresses.test(addressOf(host) ?? "")

/** Where one can listen, but not be reached. */
export const isEveryAddress = (host: string): boolean =>
  ["0.0.0.0", "[::]", "[::ffff:0:0]"].includes(addressOf(host) ?? "")

/** A host as an operator writes it, as it stands in a URL: an address in its one form, a name as it is. */
export const inUrl = (host: string): string => addressOf(host) ?? host

/** How clients may write a host in a header: as it was given, or as URLs have it (an address shortened, a name in punycode). */
const spellingsOfHost = (host: string): ReadonlyArray<string> => {
  const written = isIPv6(host) ? `[${host}]` : host
  return [written.toLowerCase(), URL.parse(`http://${inUrl(host)}`)?.hostname ?? written]
}

/** As it was given, and as browsers send it: without the port that its scheme has anyway, a name in punycode. */
const spellingsOfOrigin = (origin: string): ReadonlyArray<string> => {
  const written = origin.toLowerCase().replace(/\/$/, "")
  const sent = URL.parse(origin)?.origin ?? "null"
  // `null` stands for every origin that has no other, and is allowed only where it was given.
  return sent === "null" ? [written] : [written, sent]
}

export interface Options {
  readonly host: string
  /** As host:port, or empty. */
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
  /** Against DNS rebinding: the host must be one that is served. */
  readonly host: (header: string | undefined) => Verdict
  /** Whether a page from there may use the gateway; a page of the gateway itself may. */
  readonly origin: (header: string | undefined) => Verdict
  /** Whether other origins' pages are listed, so that they get CORS headers. */
  readonly isListedOrigin: (origin: string) => boolean
  /** The owner of a client's key. */
  readonly client: (authorization: string | undefined) => Verdict
  /** Whether a key is an operator's. */
  readonly operator: (authorization: string | undefined) => Verdict
}

const granted = (principal: string): Verdict => ({ _tag: "Granted", principal })
const refused = (status: 401 | 403, message: string): Verdict => ({ _tag: "Refused", status, message })

export const howToShowKey = "Show one of the gateway's keys as Authorization: Bearer KEY"

/** The `WWW-Authenticate` header of a 401: it says how to send a key. */
export const challengeOf = ({ message, status }: Extract<Verdict, { _tag: "Refused" }>): Record<string, string> =>
  status === 401 ? { "www-authenticate": `Bearer realm="effect-session-pool", error_description="${message}"` } : {}

const digest = (text: string): Buffer => createHash("sha256").update(text).digest()

/** Which of the keys it is, compared in constant time: every key is compared, each by its digest. */
const match = (keys: ReadonlyArray<Buffer>, authorization: string | undefined): number => {
  const shown = digest(/^bearer +(.+)$/i.exec(authorization ?? "")?.[1]?.trim() ?? "")
  let found = -1
  for (const [i, key] of keys.entries()) if (timingSafeEqual(key, shown)) found = i
  return found
}

const withoutPort = (host: string): string => host.replace(/:\d+$/, "")

export const make = (options: Options): Access => {
  // Whoever watches replicas asks each at its own address.
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
        : refused(403, "This Host is not served here; see the setting allowedHosts"),
    origin: (header) => {
      if (header === undefined || isListedOrigin(header)) return granted("")
      const name = /^https?:\/\/(\[[^\]]*\]|[^:/]*)(:\d+)?$/.exec(header.toLowerCase())?.[1]
      return name !== undefined && hosts.includes(name)
        ? granted("")
        : refused(403, "This Origin is not allowed; see the setting allowedOrigins")
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
          : refused(403, "The gateway asks for keys, but has none for operators; see the setting adminKeys")
      }
      return match(adminKeys, authorization) >= 0
        ? granted("")
        : refused(401, "Show one of the operators' keys as Authorization: Bearer KEY")
    }
  }
}
