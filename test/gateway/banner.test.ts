/** What the command says once it serves. */
import { Headers } from "effect/http"
import { assert, describe, it } from "vitest"
import * as Banner from "../../src/gateway/app/Banner.ts"
import * as Hosts from "../../src/gateway/auth/Hosts.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

describe("the URLs that the start prints", () => {
  it("have a name that is served, and none that only a listener has", () => {
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
})

describe("the page that the start names", () => {
  const watch = (keys: ReadonlyArray<string>, adminKeys: ReadonlyArray<string>) =>
    /Watch it: .*/.exec(Banner.make(["a"], "http://127.0.0.1:1", { keys, adminKeys }))?.[0]

  it("is said to need GATEWAY_ADMIN_KEYS where keys are asked for and no operator has one", () => {
    assert.match(watch(["k"], []) ?? "", /set GATEWAY_ADMIN_KEYS to open it/)
    for (const [keys, adminKeys] of [[[], []], [["k"], ["a"]]] as const) {
      assert.strictEqual(watch(keys, adminKeys), "Watch it: http://127.0.0.1:1/")
    }
  })
})

describe("a gateway that listens for other machines", () => {
  const listening = ["--host", "0.0.0.0", "--insecure"]
  const told = /answers requests to 127\.0\.0\.1, localhost, \[::1\], and all others with 403.* --allowed-hosts mcp/

  it("and knows no name of its own says so at the start and by --check, and prints a URL that works", async () => {
    const command = ["--", ...Object.values(Kit.counter()).flat()]
    const check = await runInProcess([...listening, "--check", ...command])
    assert.strictEqual(check.exit, 0)
    assert.match(check.output, told)
    const { output, url } = await Serving.command([...listening, ...command])
    assert.match(url, /^http:\/\/127\.0\.0\.1:\d+\/mcp\/counter-server$/)
    await Kit.open(url)
    await Kit.eventually("it is told", () => told.test(output()))
  })

  it("by a name that it knows says nothing of it", async () => {
    const { exit, output } = await runInProcess([...listening, "--allowed-hosts", "mcp.example.com", "--check"])
    assert.strictEqual(exit, 0)
    assert.notInclude(output, "403")
  })
})
