/** Checks the host and the origin of each request (MCP specification, basic/transports, "Security Warning"). */
import type { Headers } from "effect/http"
import { isIPv6 } from "node:net"
import type * as Settings from "../settings/Settings.ts"
import { Challenge } from "./Authenticator.ts"

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

/** True if no other machine can read or change a request to the URL. */
export const isProtected = (url: string): boolean => {
  const { hostname, protocol } = URL.parse(url) ?? { hostname: "", protocol: "" }
  return protocol === "https:" || (protocol === "http:" && isLoopback(hostname.replace(/^\[|\]$/g, "")))
}

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

type Options = Pick<Settings.GatewaySettings, "allowedHosts" | "allowedOrigins" | "host" | "replicaAddress">

export interface Hosts {
  /**
   * Refuses a request whose `Host` the gateway does not serve, against DNS rebinding. Also refuses a request of a page whose origin
   * may not use the gateway. Pages of the gateway itself always may.
   */
  readonly refusal: (headers: Headers.Headers) => Challenge | undefined
  /** True if `allowedOrigins` lists the origin, so that its pages get CORS headers. */
  readonly isListedOrigin: (origin: string) => boolean
}

const wrongHost = new Challenge({
  status: 403,
  message: "The gateway does not serve this Host; add it to the setting allowedHosts"
})
const wrongOrigin = new Challenge({
  status: 403,
  message: "The gateway does not allow this Origin; add it to the setting allowedOrigins"
})

const withoutPort = (host: string): string => host.replace(/:\d+$/, "")

export const make = (options: Options): Hosts => {
  // Monitoring asks each replica at its own address.
  const replica = options.replicaAddress === "" ? [] : [withoutPort(options.replicaAddress)]
  const hosts = [...loopbackHosts, options.host, ...replica, ...options.allowedHosts].flatMap(spellingsOfHost)
  const origins = options.allowedOrigins.flatMap(spellingsOfOrigin)
  const isListedOrigin = (origin: string) => origins.includes(origin.toLowerCase())
  const isOwnPage = (origin: string) => {
    const name = /^https?:\/\/(\[[^\]]*\]|[^:/]*)(:\d+)?$/.exec(origin.toLowerCase())?.[1]
    return name !== undefined && hosts.includes(name)
  }
  return {
    refusal: ({ host, origin }) => {
      if (!hosts.includes(withoutPort(host ?? "").toLowerCase())) return wrongHost
      return origin === undefined || isListedOrigin(origin) || isOwnPage(origin) ? undefined : wrongOrigin
    },
    isListedOrigin
  }
}
