/** Takes the README's picture of the page, with real servers and clients at work for some minutes: `npm run picture`. */
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { createRequire } from "node:module"
import * as Chromium from "./kit/browser.ts"
import * as Kit from "./kit/gateway/gateway.ts"

const seconds = 270
const { resolve } = createRequire(import.meta.url)
const server = (name: string, ...args: ReadonlyArray<string>) => ({
  command: process.execPath,
  args: [resolve(`@modelcontextprotocol/server-${name}/dist/index.js`), ...args]
})
const files = new URL("../src", import.meta.url).pathname
const gateway = await Kit.start({
  backends: {
    files: server("filesystem", files),
    memory: { ...server("memory"), spares: 1 },
    everything: server("everything"),
    tickets: { command: "sh", args: ["-c", "echo 'TICKETS_URL is not set' >&2; exit 1"] }
  }
})

/** The call that a client of each server repeats. */
const calls: Record<string, { readonly name: string; readonly arguments: Record<string, unknown> }> = {
  files: { name: "search_files", arguments: { path: files, pattern: "**/*.ts" } },
  memory: { name: "read_graph", arguments: {} },
  everything: { name: "trigger-long-running-operation", arguments: { duration: 0.3, steps: 3 } }
}

const connect = async (backend: string, name: string, version: string) => {
  const client = new Client({ name, version })
  await client.connect(new StreamableHTTPClientTransport(new URL(`${gateway.origin}/mcp/${backend}`)))
  return { client, backend }
}
const clients: Array<Awaited<ReturnType<typeof connect>>> = []
const newcomers = [
  ["files", "editor", "3.4.1"],
  ["memory", "editor", "3.4.1"],
  ["files", "code-agent", "0.9.0"],
  ["everything", "inspector", "1.0.0"],
  ["files", "chat-desktop", "12.0.2"],
  ["memory", "chat-desktop", "12.0.2"],
  ["files", "ci-runner", "5.1.0"]
] as const

const running = new Set<Promise<unknown>>()
for (let second = 0; second < seconds; second++) {
  const [backend, name, version] = newcomers[second / 20] ?? []
  if (backend !== undefined) clients.push(await connect(backend, name, version))
  // This client leaves before the end.
  if (second === 200) await clients.pop()?.client.close()
  if (second === 30) await Kit.initialize(`${gateway.origin}/mcp/tickets`)
  const { backend: at = "", client } = clients[second * 7 % 11] ?? {}
  // No client calls for a while, so the page shows no latency.
  const call = second > 90 && second < 120 ? undefined : calls[at]
  if (client !== undefined && call !== undefined) {
    for (let i = 0; i < 1 + second % 3; i++) {
      const calling = client.callTool(call).finally(() => running.delete(calling))
      running.add(calling)
    }
  }
  await new Promise((resolve) => setTimeout(resolve, 1000))
}
await Promise.all(running)
const [last] = clients
const lasting = last?.client.callTool({ name: "search_files", arguments: { path: "/usr/lib", pattern: "**/*.x" } })
const browser = await Chromium.launch()
const page = await browser.newPage({ viewport: { width: 1180, height: 800 }, colorScheme: "light" })
await page.goto(`${gateway.origin}/`)
await page.locator("tbody tr").first().waitFor()
await page.screenshot({ path: new URL("page.png", import.meta.url).pathname, fullPage: true })
await browser.close()
await lasting?.catch(() => undefined)
await gateway.stop()
process.exit(0)
