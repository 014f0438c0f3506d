/** The text that the command prints when it starts to serve. */
import { Headers } from "effect/http"
import { assert, describe, it } from "vitest"
import * as Banner from "../../src/gateway/app/Banner.ts"
import * as Hosts from "../../src/gateway/auth/Hosts.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

describe("the banner", () => {
  it("prints a URL whose host the gateway serves, instead of an address to listen on", () => {
    const cases: ReadonlyArray<readonly [string, ReadonlyArray<string>, string]> = [
      ["127.0.0.1", [], "http://127.0.0.1:1"],
      ["10.0.0.7", ["mcp.example.com"], "http://10.0.0.7:1"],
      ["2001:db8::1", [], "http://[2001:db8::1]:1"],
      ["127.9.2", [], "http://127.9.0.2:1"],
      ["FD00:0:0::7", [], "http://[fd00::7]:1"],
      ["fe80::1%eth0", [], "http://[fe80::1]:1"],
      ["0.0.0.0", [], "http://127.0.0.1:1"],
      ["::", [], "http://127.0.0.1:1"],
      ["0.0.0.0", ["mcp.example.com", "other.example.com"], "http://mcp.example.com:1"],
      ["::", ["[2001:db8::1]"], "http://[2001:db8::1]:1"]
    ]
    for (const [host, allowedHosts, expected] of cases) {
      assert.strictEqual(Banner.origin({ host, allowedHosts }, "http", 1), expected)
      const hosts = Hosts.make({ host, replicaAddress: "", allowedHosts, allowedOrigins: [] })
      const headers = Headers.fromInput({ host: expected.replace("http://", "") })
      assert.isUndefined(hosts.refusal(headers), expected)
    }
  })

  const bannerOf = (keys: ReadonlyArray<string>, adminKeys: ReadonlyArray<string>, authIssuer = "") =>
    Banner.make(["a"], "http://127.0.0.1:1", { keys, adminKeys, authIssuer, proxyHeader: "" })
  const issuer = "https://auth.example.com"

  it("shows a client with a key only if clients have no other way in", () => {
    const shown = [bannerOf(["k"], []), bannerOf([], []), bannerOf([], [], issuer), bannerOf(["k"], [], issuer)]
    assert.deepStrictEqual(shown.map((banner) => banner.includes("Authorization: Bearer")), [true, false, false, false])
  })

  it("says that the page needs GATEWAY_ADMIN_KEYS if clients are authenticated and operators have no keys", () => {
    const watch = (...args: Parameters<typeof bannerOf>) => /Watch it: .*/.exec(bannerOf(...args))?.[0]
    assert.match(watch(["k"], []) ?? "", /set GATEWAY_ADMIN_KEYS to open it/)
    assert.match(watch([], [], issuer) ?? "", /set GATEWAY_ADMIN_KEYS to open it/)
    for (const [keys, adminKeys] of [[[], []], [["k"], ["a"]]] as const) {
      assert.strictEqual(watch(keys, adminKeys), "Watch it: http://127.0.0.1:1/")
    }
  })

  it("warns on all addresses without --allowed-hosts, also by --check, and prints a URL that works", async () => {
    const told = /answers requests to 127\.0\.0\.1, localhost, \[::1\], and all others with 403.* --allowed-hosts mcp/
    const check = (...more: ReadonlyArray<string>) =>
      runInProcess(["--host", "0.0.0.0", "--insecure", "--check", ...more])
    const [warned, named] = [await check(), await check("--allowed-hosts", "mcp.example.com")]
    assert.deepStrictEqual([warned.exit, named.exit], [0, 0])
    assert.match(warned.output, told)
    assert.notInclude(named.output, "403")
    const { output, url } = await Serving.command(["--host", "0x0"], { GATEWAY_KEYS: "a-key" })
    assert.match(url, /^http:\/\/127\.0\.0\.1:\d+\/mcp\/counter-server$/)
    assert.strictEqual((await Kit.initialize(url, Kit.bearer("a-key"))).status, 200)
    await Kit.eventually("it warns", () => told.test(output()))
    assert.include(output(), "--host 0x0 without --allowed-hosts")
  })
})
