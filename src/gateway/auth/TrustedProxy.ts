/** Recognises a caller by the header in which a trusted proxy names it. */
import { BlockList, isIPv6 } from "node:net"
import type * as Settings from "../settings/Settings.ts"
import type { Recognise } from "./Authenticator.ts"
import * as PeerOwner from "./PeerOwner.ts"
import { idOf } from "./Principal.ts"

export type Options = Pick<Settings.GatewaySettings, "proxyHeader" | "trustedProxies">

const familyOf = (address: string) => isIPv6(address) ? "ipv6" : "ipv4"

/** Reads the header only on connections from the listed addresses. On any other connection, the client may have written it itself. */
export const recogniser = ({ proxyHeader, trustedProxies }: Options): Recognise => {
  const proxies = new BlockList()
  for (const network of trustedProxies) {
    const [address = "", prefix] = network.split("/")
    if (prefix === undefined) proxies.addAddress(address, familyOf(address))
    else proxies.addSubnet(address, Number(prefix), familyOf(address))
  }
  const header = proxyHeader.toLowerCase()
  return (request) => {
    const user = request.headers[header] ?? ""
    // The address of the connection. The client may write any other, as in X-Forwarded-For. A link-local address has a zone.
    const from = PeerOwner.socketOf(request)?.remoteAddress?.replace(/^::ffff:(?=\d+\.)/, "").replace(/%.*/, "")
    return user !== "" && from !== undefined && proxies.check(from, familyOf(from))
      ? { id: idOf("proxy", user), name: user, claims: {} }
      : undefined
  }
}
