/**
 * Which hosts other machines reach, however they are written: told before anybody listens, so compared with where Node listens; and
 * which hosts and origins are let in.
 */
import { Headers } from "effect/http"
import type { AddressInfo } from "node:net"
import { createServer } from "node:net"
import { assert, describe, it } from "vitest"
import * as Banner from "../../src/gateway/app/Banner.ts"
import * as Hosts from "../../src/gateway/auth/Hosts.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"

const every = ["0", "00", "0x0", "0X0", "0x00000000", "00.0.0.0", "0.0", "0.0.0", "0.0.0.0"]
  .concat(["::", "::0", "0::", "0:0:0:0:0:0:0:0", "0000::0", "::0.0.0.0", "::%lo", "::ffff:0.0.0.0", "::ffff:0:0"])
const loopback = ["127.0.0.1", "127.1", "127.9.9.9", "127.000.000.001", "0177.0.0.1", "0x7f000001", "2130706433"]
  .concat(["::1", "0:0:0:0:0:0:0:1", "::01", "::1%lo", "::ffff:127.0.0.1", "::ffff:7f00:1", "localhost", "LOCALHOST"])
/** Names that some resolver takes for this machine, and addresses that only look like its own. */
const neither = ["10.0.0.7", "1", "256", "126.255.255.255", "128.0.0.1", "4294967296", "127.0.0.0.1", "127.0.0.08"]
  .concat(["fd00::7", "fe80::1%eth0", "::2", "::127.0.0.1", "::ffff:10.0.0.7", "::ffff:8000:1", "1::ffff:7f00:1"])
  .concat([
    "localhost.",
    "localhost.example.org",
    "127.0.0.1.example.org",
    "user@127.0.0.1",
    "127.0.0.1#",
    "127.0.0.1:80"
  ])
  .concat(["0x", "0x7f.0x.0x.1", "١٢٧.٠.٠.١", "\uff11\uff12\uff17.0.0.1", "[::]", "[::1]", "*", "-0", "face.cafe", ""])

/** Where Node listens for a host; none where it cannot. */
const listensAt = (host: string) =>
  new Promise<string | undefined>((resolve) => {
    const server = createServer().on("error", () => resolve(undefined))
    server.listen({ host, port: 0 }, () => {
      // Not the path of a pipe.
      const { address } = server.address() as AddressInfo
      server.close(() => resolve(address))
    })
  })

const options = { host: "0.0.0.0", replicaAddress: "", allowedHosts: [], allowedOrigins: [] }

const serves = (hosts: Hosts.Hosts, host: string, origin?: string) =>
  hosts.refusal(Headers.fromInput({ host, origin })) === undefined

describe("a host", () => {
  it("that is every address of the machine is known as that, and one that is its own alone, in every spelling", () => {
    const known = (host: string) => [host, Hosts.isEveryAddress(host), Hosts.isLoopback(host)]
    for (const host of every) assert.deepStrictEqual(known(host), [host, true, false])
    for (const host of loopback) assert.deepStrictEqual(known(host), [host, false, true])
    for (const host of neither) assert.deepStrictEqual(known(host), [host, false, false])
  })

  it("at which Node listens for other machines is never taken for one that only this machine reaches", async () => {
    const listening: Array<string> = []
    for (const host of [...every, ...loopback, ...neither.filter((each) => each !== "")]) {
      const address = await listensAt(host)
      if (address === undefined) continue
      listening.push(host)
      const isOwn = /^(127\.|::1$|::ffff:127\.)/.test(address)
      assert.isTrue(isOwn || !Hosts.isLoopback(host), `${host}: ${address}`)
      assert.strictEqual(Hosts.isEveryAddress(host), ["0.0.0.0", "::", "::ffff:0.0.0.0"].includes(address), host)
    }
    assert.includeMembers(listening, ["0", "127.1", "localhost"])
  })

  it("is told to clients, and let in, as URLs write it and as the operator has", () => {
    const cases: ReadonlyArray<readonly [host: string, told: string, ...headers: ReadonlyArray<string>]> = [
      ["0", "127.0.0.1", "127.0.0.1", "localhost"],
      ["0:0:0:0:0:0:0:0", "127.0.0.1", "127.0.0.1", "[::1]"],
      ["127.9.2", "127.9.0.2", "127.9.0.2", "127.9.2"],
      ["FD00:0:0::7", "[fd00::7]", "[fd00::7]", "[FD00:0:0::7]"],
      ["fe80::1%eth0", "[fe80::1]", "[fe80::1]"],
      ["Gateway.example.org", "Gateway.example.org", "gateway.example.org", "Gateway.example.org:8420"]
    ]
    for (const [host, told, ...headers] of cases) {
      assert.strictEqual(Banner.origin({ host, allowedHosts: [] }, "http", 8420), `http://${told}:8420`)
      const hosts = Hosts.make({ ...options, host })
      for (const header of headers) assert.isTrue(serves(hosts, header), header)
    }
  })

  it("at which the others reach a replica is let in: whoever watches replicas asks each by its own", () => {
    const hosts = ["one:8421", "10.0.0.7:8421", "[fd00::7]:8421"]
    for (const replicaAddress of hosts) {
      const replica = Hosts.make({ ...options, replicaAddress })
      for (const host of hosts) {
        assert.strictEqual(serves(replica, host.replace("8421", "8420")), host === replicaAddress, host)
      }
      assert.isFalse(serves(replica, ""))
    }
    assert.isFalse(serves(Hosts.make(options), ""))
  })

  it("that the operator allows is let in as it is written, and as URLs write it", () => {
    const cases: ReadonlyArray<readonly [allowed: string, ...headers: ReadonlyArray<string>]> = [
      ["[FD00:0:0::7]", "[fd00::7]:8420", "[FD00:0:0::7]"],
      ["Bücher.example", "xn--bcher-kva.example:8420"],
      ["mcp.example.org", "MCP.example.org:8420"],
      ["mcp_1.internal", "mcp_1.internal"]
    ]
    for (const [allowed, ...headers] of cases) {
      const both = [{ host: "127.0.0.1", allowedHosts: [allowed] }, { host: allowed, allowedHosts: [] }]
      for (const served of both) {
        const hosts = Hosts.make({ ...options, ...served })
        for (const header of headers) assert.isTrue(serves(hosts, header), header)
        for (const header of ["", "example.org", "[fd00::8]"]) assert.isFalse(serves(hosts, header))
      }
    }
  })

  it("that is every address, however written, is refused without a key, and with one says where it answers", async () => {
    const { args, command } = Kit.counter()
    const serve = ["--host", "0x0", "--port", "0", "--", command, ...args]
    const refused = await runInProcess(serve)
    assert.strictEqual(refused.exit, 1)
    assert.include(refused.output, "Other machines reach 0x0")
    const gateway = Kit.run(serve, { GATEWAY_KEYS: "a-key" })
    const url = await Kit.urlOf(gateway)
    assert.match(url, /^http:\/\/127\.0\.0\.1:\d+\//)
    const headers = { ...Kit.headers, authorization: "Bearer a-key" }
    assert.strictEqual((await fetch(url, { method: "POST", headers, body: Kit.initializeBody })).status, 200)
    assert.include(gateway.output(), "--host 0x0 without --allowed-hosts")
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })
})

describe("an origin that the operator allows", () => {
  it("is let in as it is written, and as browsers send it; one that they send as null lets no other in", () => {
    const cases: ReadonlyArray<readonly [allowed: string, sent: string]> = [
      ["https://app.example.com:443/", "https://app.example.com"],
      ["http://app.example.com:80", "http://app.example.com"],
      ["https://Bücher.example", "https://xn--bcher-kva.example"],
      ["http://[fd00:0:0::7]:81", "http://[fd00::7]:81"],
      ["chrome-extension://abc", "chrome-extension://abc"],
      ["null", "null"]
    ]
    for (const [allowed, sent] of cases) {
      const hosts = Hosts.make({ ...options, host: "127.0.0.1", allowedOrigins: [allowed] })
      for (const origin of [allowed.replace(/\/$/, ""), sent]) {
        assert.isTrue(serves(hosts, "127.0.0.1", origin), origin)
        assert.isTrue(hosts.isListedOrigin(origin), origin)
      }
      for (const other of ["null", "https://app.example.com:444", "https://example.com"]) {
        assert.strictEqual(serves(hosts, "127.0.0.1", other), other === sent, `${allowed}: ${other}`)
      }
    }
  })
})
