/** Hosts in every spelling, compared with where Node listens, and the `Host` and `Origin` headers that the gateway accepts. */
import type { AddressInfo } from "node:net"
import { createServer } from "node:net"
import { assert, describe, it } from "vitest"
import * as Hosts from "../../src/gateway/auth/Hosts.ts"
import type { GatewayOptions } from "../../src/gateway/Gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"

const every = ["0", "00", "0x0", "0X0", "0x00000000", "00.0.0.0", "0.0", "0.0.0", "0.0.0.0"]
  .concat(["::", "::0", "0::", "0:0:0:0:0:0:0:0", "0000::0", "::0.0.0.0", "::%lo", "::ffff:0.0.0.0", "::ffff:0:0"])
const loopback = ["127.0.0.1", "127.1", "127.9.9.9", "127.000.000.001", "0177.0.0.1", "0x7f000001", "2130706433"]
  .concat(["::1", "0:0:0:0:0:0:0:1", "::01", "::1%lo", "::ffff:127.0.0.1", "::ffff:7f00:1", "localhost", "LOCALHOST"])
/** Names that some resolver takes for this machine, and addresses that only look like its own. */
const neither = ["10.0.0.7", "1", "256", "126.255.255.255", "128.0.0.1", "4294967296", "127.0.0.0.1", "127.0.0.08"]
  .concat(["fd00::7", "fe80::1%eth0", "::2", "::127.0.0.1", "::ffff:10.0.0.7", "::ffff:8000:1", "1::ffff:7f00:1"])
  .concat(["localhost.", "localhost.example.org", "127.0.0.1.example.org", "user@127.0.0.1", "127.0.0.1#"])
  .concat(["0x", "0x7f.0x.0x.1", "١٢٧.٠.٠.١", "\uff11\uff12\uff17.0.0.1", "[::]", "[::1]", "*", "-0", "face.cafe", ""])
  .concat("127.0.0.1:80")

/** The address on which Node listens for a host. `undefined` if it cannot. */
const listensAt = (host: string) =>
  new Promise<string | undefined>((resolve) => {
    const server = createServer().on("error", () => resolve(undefined))
    server.listen({ host, port: 0 }, () => {
      // Not the path of a pipe.
      const { address } = server.address() as AddressInfo
      server.close(() => resolve(address))
    })
  })

describe("hosts", () => {
  it("classifies every spelling of a host as all addresses, as loopback or as neither, as Node does", async () => {
    const listening: Array<string> = []
    const kinds = [[every, true, false], [loopback, false, true], [neither, false, false]] as const
    for (const [hosts, isEvery, isOwn] of kinds) {
      for (const host of hosts) {
        const known = [host, Hosts.isEveryAddress(host), Hosts.isLoopback(host)]
        assert.deepStrictEqual(known, [host, isEvery, isOwn])
        const address = host === "" ? undefined : await listensAt(host)
        if (address === undefined) continue
        listening.push(host)
        assert.isTrue(!isOwn || /^(127\.|::1$|::ffff:127\.)/.test(address), `${host}: ${address}`)
        assert.strictEqual(["0.0.0.0", "::", "::ffff:0.0.0.0"].includes(address), isEvery, host)
      }
    }
    assert.includeMembers(listening, ["0", "127.1", "localhost"])
  })
})

type Options = Omit<GatewayOptions, "backends">
type Values = ReadonlyArray<string>

/** Starts a gateway that must answer with 200 to some values of a header, and with 403 to others. */
const checks = async (options: Options, header: string, granted: Values, refused: Values) => {
  const { origin } = await Serve.gateway({ backends: {}, ...options })
  for (const value of [...granted, ...refused]) {
    const { status } = await Serve.ask(origin, "/health", { [header]: value }, "GET")
    assert.strictEqual(status, granted.includes(value) ? 200 : 403, `${JSON.stringify(options)}: ${value}`)
  }
}

const cases: ReadonlyArray<readonly [options: Options, ...served: ReadonlyArray<string>]> = [
  [{}, "127.0.0.1", "localhost", "[::1]:8420"],
  [{ host: "0:0:0:0:0:0:0:0" }, "127.0.0.1"],
  [{ host: "127.9.2" }, "127.9.0.2", "127.9.2"],
  [{ host: "FD00:0:0::7" }, "[fd00::7]:8420", "[FD00:0:0::7]"],
  [{ host: "fe80::1%eth0" }, "[fe80::1]"],
  [{ host: "Gateway.example.com" }, "gateway.example.com", "Gateway.example.com:8420"],
  [{ allowedHosts: ["[FD00:0:0::7]"] }, "[fd00::7]:8420", "[FD00:0:0::7]"],
  [{ allowedHosts: ["Bücher.example"] }, "xn--bcher-kva.example:8420"],
  [{ allowedHosts: ["mcp.example.com"] }, "MCP.example.com:8420"],
  [{ allowedHosts: ["mcp_1.internal"] }, "mcp_1.internal"],
  // Monitoring asks each replica at its own address.
  [{ replicaAddress: "one:8421" }, "one:8420"],
  [{ replicaAddress: "10.0.0.7:8421" }, "10.0.0.7:8420"],
  [{ replicaAddress: "[fd00::7]:8421" }, "[fd00::7]:8420"]
]

it("accepts a Host header that names the gateway as its operator or a URL writes it, and no other host", async () => {
  for (const [options, ...served] of cases) {
    await checks(options, "host", served, ["", "example.org", "two:8420", "[fd00::8]"])
  }
})

it("accepts an allowed origin as written and as browsers send it, and no origin besides the allowed one", async () => {
  const cases: ReadonlyArray<readonly [allowed: string, sent: string]> = [
    ["https://app.example.com:443/", "https://app.example.com"],
    ["http://app.example.com:80", "http://app.example.com"],
    ["https://Bücher.example", "https://xn--bcher-kva.example"],
    ["http://[fd00:0:0::7]:81", "http://[fd00::7]:81"],
    ["chrome-extension://abc", "chrome-extension://abc"],
    ["null", "null"]
  ]
  for (const [allowed, sent] of cases) {
    const others = ["null", "https://app.example.com:444", "https://example.com"].filter((other) => other !== sent)
    await checks({ allowedOrigins: [allowed] }, "origin", [allowed.replace(/\/$/, ""), sent], others)
  }
})
