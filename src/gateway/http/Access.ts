/** Who may come in: host, origin and key of a request (MCP specification, basic/transports, "Security Warning"). */
import { createHash, timingSafeEqual } from "node:crypto"
import { isIPv4 } from "node:net"

/** The names of this machine, as they stand in a URL; they are always served. */
export const loopbackHosts = ["127.0.0.1", "localhost", "[::1]"]

export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIPv4(host) && host.startsWith("127."))

/** Where one can listen, but not be reached. */
export const isEveryAddress = (host: string): boolean => host === "0.0.0.0" || host === "::"

export interface Options {
  readonly host: string
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

const digest = (text: string): Buffer => createHash("sha256").update(text).digest()

/** Which of the keys it is, compared in constant time: every key is compared, each by its digest. */
const match = (keys: ReadonlyArray<Buffer>, authorization: string | undefined): number => {
  const shown = digest(/^bearer +(.+)$/i.exec(authorization ?? "")?.[1]?.trim() ?? "")
  let found = -1
  for (const [i, key] of keys.entries()) if (timingSafeEqual(key, shown)) found = i
  return found
}

export const make = (options: Options): Access => {
  // In a header an IPv6 address stands in brackets.
  const own = options.host.includes(":") ? `[${options.host}]` : options.host
  const hosts = [...loopbackHosts, own, ...options.allowedHosts].map((host) => host.toLowerCase())
  const origins = options.allowedOrigins.map((origin) => origin.toLowerCase().replace(/\/$/, ""))
  const isListedOrigin = (origin: string) => origins.includes(origin.toLowerCase())
  const keys = options.keys.map(digest)
  const adminKeys = options.adminKeys.map(digest)
  return {
    host: (header) =>
      hosts.includes((header ?? "").replace(/:\d+$/, "").toLowerCase())
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
        ? refused(401, "Show one of the gateway's keys as Authorization: Bearer KEY")
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
