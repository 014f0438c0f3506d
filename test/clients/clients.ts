/**
 * The clients that `run.ts` tries, each behind the same three operations. `npx tsc -p test/clients` checks their types once they
 * are installed; `npm run check` leaves them out.
 */
import { createMCPClient } from "@ai-sdk/mcp"
import { MultiServerMCPClient } from "@langchain/mcp-adapters"
import type { ToolExecutionContext } from "@mastra/core/tools"
import { MCPClient } from "@mastra/mcp"
import { Client as Client2, StreamableHTTPClientTransport as Transport2 } from "@modelcontextprotocol/client"
import { MCPServerStreamableHttp } from "@openai/agents"
import { Effect, Exit, Scope } from "effect"
import { McpClient, McpProtocol } from "effect/ai"
import { FetchHttpClient } from "effect/http"
import { spawn } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { Client as Client110 } from "sdk-1.10/client/index.js"
import { StreamableHTTPClientTransport as Transport110 } from "sdk-1.10/client/streamableHttp.js"
import { Client as Client117 } from "sdk-1.17/client/index.js"
import { StreamableHTTPClientTransport as Transport117 } from "sdk-1.17/client/streamableHttp.js"
import { Client as Client132 } from "sdk-1.32/client/index.js"
import { StdioClientTransport } from "sdk-1.32/client/stdio.js"
import { StreamableHTTPClientTransport as Transport132 } from "sdk-1.32/client/streamableHttp.js"

export interface Connected {
  /** The names of the tools. */
  readonly list: () => Promise<ReadonlyArray<string>>
  /** Calls a tool; the JSON of what the client makes of its result. An aborted signal cancels the call in the client's way. */
  readonly call: (tool: string, args: Record<string, unknown>, signal?: AbortSignal) => Promise<string>
  readonly close: () => Promise<unknown>
}

export interface Subject {
  readonly name: string
  readonly version: string
  /** True if its gateway asks for a token of an authorization server. */
  readonly logsIn?: true
  /** A client for the URL that keeps its own files, if it has any, in the folder `home`. */
  readonly connect: (url: string, home: string) => Promise<Connected>
}

const modules = fileURLToPath(new URL("node_modules/", import.meta.url))

const versionOf = (name: string, from = modules): string =>
  JSON.parse(readFileSync(`${from}${name}/package.json`, "utf8")).version

const named = <T>(tool: T | undefined, name: string): T => {
  if (tool === undefined) throw new Error(`no tool ${name}`)
  return tool
}

const clientInfo = { name: "clients", version: "1.0.0" }

/** What the official clients of all versions have in common. */
interface Official {
  readonly listTools: () => Promise<{ readonly tools: ReadonlyArray<{ readonly name: string }> }>
  readonly close: () => Promise<void>
}

const official = (
  client: Official,
  call: (params: { name: string; arguments: Record<string, unknown> }, signal?: AbortSignal) => Promise<unknown>
): Connected => ({
  list: async () => (await client.listTools()).tools.map(({ name }) => name),
  call: async (tool, args, signal) => JSON.stringify(await call({ name: tool, arguments: args }, signal)),
  close: () => client.close()
})

const sdks: ReadonlyArray<Subject> = [
  {
    name: "@modelcontextprotocol/sdk 1.10",
    version: versionOf("sdk-1.10"),
    connect: async (url) => {
      const client = new Client110(clientInfo)
      await client.connect(new Transport110(new URL(url)))
      return official(client, (params, signal) => client.callTool(params, undefined, { signal }))
    }
  },
  {
    name: "@modelcontextprotocol/sdk 1.17",
    version: versionOf("sdk-1.17"),
    connect: async (url) => {
      const client = new Client117(clientInfo)
      await client.connect(new Transport117(new URL(url)))
      return official(client, (params, signal) => client.callTool(params, undefined, { signal }))
    }
  },
  {
    name: "@modelcontextprotocol/sdk 1.32",
    version: versionOf("sdk-1.32"),
    connect: async (url) => {
      const client = new Client132(clientInfo)
      await client.connect(new Transport132(new URL(url)))
      return official(client, (params, signal) => client.callTool(params, undefined, { signal }))
    }
  }
]

const client2 = (name: string, mode: "legacy" | { readonly pin: string }): Subject => ({
  name,
  version: versionOf("@modelcontextprotocol/client"),
  connect: async (url) => {
    const client = new Client2(clientInfo, { versionNegotiation: { mode } })
    await client.connect(new Transport2(new URL(url)))
    return official(client, (params, signal) => client.callTool(params, { signal }))
  }
})

/** A program that does one thing and ends, so that it has a session for each. SIGINT, as Ctrl-C sends it, cancels. */
const inspector: Subject = {
  name: "Inspector CLI",
  version: versionOf("@modelcontextprotocol/inspector"),
  connect: async (url, home) => {
    const run = (args: ReadonlyArray<string>, signal?: AbortSignal) =>
      new Promise<string>((resolve, reject) => {
        const child = spawn(
          process.execPath,
          [`${modules}.bin/mcp-inspector`, "--cli", url, "--transport", "http", ...args],
          { env: { ...process.env, HOME: home }, stdio: ["ignore", "pipe", "pipe"] }
        )
        let [output, said] = ["", ""]
        child.stdout.on("data", (chunk) => output += chunk)
        child.stderr.on("data", (chunk) => said += chunk)
        signal?.addEventListener("abort", () => child.kill("SIGINT"))
        child.on("close", (code, by) =>
          code === 0 ? resolve(output) : reject(new Error(`ended with ${code ?? by}: ${said.trim()}`)))
      })
    return {
      list: async () => {
        const { tools } = JSON.parse(await run(["--method", "tools/list"]))
        return tools.map(({ name }: { readonly name: string }) => name)
      },
      call: (tool, args, signal) =>
        run([
          "--method",
          "tools/call",
          "--tool-name",
          tool,
          ...Object.entries(args).flatMap(([name, value]) => ["--tool-arg", `${name}=${value}`])
        ], signal),
      close: async () => {}
    }
  }
}

/**
 * A bridge from stdio to HTTP, for clients on stdio; here the SDK's. It logs in with the program that `BROWSER` names, and keeps its
 * tokens in its home.
 */
const mcpRemote = (more: { readonly logsIn?: true }): Subject => ({
  name: `mcp-remote (spoken to by SDK 1.32)${more.logsIn ? ", OAuth" : ""}`,
  version: versionOf("mcp-remote"),
  ...more,
  connect: async (url, home) => {
    const browser = join(home, "browser")
    const program = fileURLToPath(new URL("browser.ts", import.meta.url))
    writeFileSync(browser, `#!/bin/sh\nexec "${process.execPath}" "${program}" "$1"\n`, { mode: 0o755 })
    const client = new Client132(clientInfo)
    await client.connect(
      new StdioClientTransport({
        command: process.execPath,
        args: [`${modules}mcp-remote/dist/proxy.js`, url, "--allow-http"],
        env: { PATH: process.env["PATH"] ?? "", HOME: home, BROWSER: browser },
        stderr: "ignore"
      })
    )
    return official(client, (params, signal) => client.callTool(params, undefined, { signal }))
  }
})

const aiSdk: Subject = {
  name: "@ai-sdk/mcp",
  version: versionOf("@ai-sdk/mcp"),
  connect: async (url) => {
    const client = await createMCPClient({ transport: { type: "http", url } })
    return official(
      client,
      ({ arguments: args, name }, signal) => client.callTool({ name, arguments: args, options: { signal } })
    )
  }
}

const langChain: Subject = {
  name: "@langchain/mcp-adapters",
  version: versionOf("@langchain/mcp-adapters"),
  connect: async (url) => {
    const client = new MultiServerMCPClient({ gateway: { transport: "http", url } })
    const tools = await client.getTools()
    return {
      list: async () => (await client.getTools()).map(({ name }) => name),
      call: async (tool, args, signal) =>
        JSON.stringify(await named(tools.find(({ name }) => name === tool), tool).invoke(args, { signal })),
      close: () => client.close()
    }
  }
}

const mastra: Subject = {
  name: "@mastra/mcp",
  version: versionOf("@mastra/mcp"),
  connect: async (url) => {
    const client = new MCPClient({ id: url, servers: { gateway: { url: new URL(url) } } })
    const tools = (await client.listToolsets())["gateway"] ?? {}
    return {
      list: async () => Object.keys((await client.listToolsets())["gateway"] ?? {}),
      call: async (tool, args, signal) =>
        // Tools of MCP take nothing else from what an agent's run passes.
        JSON.stringify(await named(tools[tool]?.execute, tool)(args, { abortSignal: signal } as ToolExecutionContext)),
      close: () => client.disconnect()
    }
  }
}

const openAiAgents: Subject = {
  name: "@openai/agents",
  version: versionOf("@openai/agents"),
  connect: async (url) => {
    const server = new MCPServerStreamableHttp({ url, name: "gateway" })
    await server.connect()
    return {
      list: async () => (await server.listTools()).map(({ name }) => name),
      call: async (tool, args, signal) => JSON.stringify(await server.callTool(tool, args, null, { signal })),
      close: () => server.close()
    }
  }
}

const effect = (
  name: string,
  protocol: typeof McpProtocol.v2025_11_25 | typeof McpProtocol.v2026_07_28
): Subject => ({
  name,
  version: versionOf("effect", fileURLToPath(new URL("../../node_modules/", import.meta.url))),
  connect: async (url) => {
    const scope = Effect.runSync(Scope.make())
    const transport = McpClient.http({ url, protocol }).pipe(Effect.provide(FetchHttpClient.layer))
    const client = await Effect.runPromise(
      McpClient.make(clientInfo).pipe(
        Effect.provideServiceEffect(McpClient.Transport, transport),
        Scope.provide(scope)
      )
    )
    const tools = await Effect.runPromise(client.listTools())
    return {
      list: async () => (await Effect.runPromise(client.listTools())).map(({ name }) => name),
      call: async (name, args, signal) => {
        const tool = named(tools.find((tool) => tool.name === name), name)
        return JSON.stringify(await Effect.runPromise(client.callTool({ tool, arguments: args }), { signal }))
      },
      close: () => Effect.runPromise(Scope.close(scope, Exit.void))
    }
  }
})

export const subjects: ReadonlyArray<Subject> = [
  ...sdks,
  client2("@modelcontextprotocol/client", "legacy"),
  client2("@modelcontextprotocol/client, 2026-07-28", { pin: "2026-07-28" }),
  inspector,
  mcpRemote({}),
  mcpRemote({ logsIn: true }),
  aiSdk,
  langChain,
  mastra,
  openAiAgents,
  effect("Effect's McpClient, 2025-11-25", McpProtocol.v2025_11_25),
  effect("Effect's McpClient, 2026-07-28", McpProtocol.v2026_07_28)
]
