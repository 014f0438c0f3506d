/** The text that the command prints at its start: the URLs, and how to connect a client. */
import * as Hosts from "../auth/Hosts.ts"
import * as Settings from "../settings/Settings.ts"

/** The origin of a URL that clients can use. Its host name is one that the gateway allows in requests. */
export const origin = (
  { allowedHosts: [first = "127.0.0.1"], host }: Pick<Settings.GatewaySettings, "allowedHosts" | "host">,
  scheme: "http" | "https",
  port: number
): string => {
  return `${scheme}://${Hosts.isEveryAddress(host) ? first : Hosts.inUrl(host)}:${port}`
}

export const make = (
  names: ReadonlyArray<string>,
  origin: string,
  settings: Pick<Settings.GatewaySettings, "keys" | "adminKeys" | "authIssuer" | "proxyHeader">
): string => {
  const urls = names.map((name) => ({ name, url: `${origin}/mcp/${name}` }))
  const needsKey = Settings.needsKey(settings)
  const key = needsKey ? { headers: { Authorization: "Bearer ${MCP_KEY}" } } : {}
  const header = needsKey ? " --header \"Authorization: Bearer $MCP_KEY\"" : ""
  const servers = Object.fromEntries(urls.map(({ name, url }) => [name, { type: "http", url, ...key }]))
  // A client's key does not open the page.
  const closed = Settings.isAuthenticated(settings) && settings.adminKeys.length === 0
  return [
    "",
    "The gateway is up: one session of a back end per client session.",
    "",
    ...urls.map(({ name, url }) => `  ${name}: ${url}`),
    "",
    `Watch it: ${origin}/${closed ? " (set GATEWAY_ADMIN_KEYS to open it)" : ""}`,
    "",
    "Connect a client, for instance:",
    "",
    ...urls.map(({ name, url }) => `  claude mcp add --transport http ${name} ${url}${header}`),
    "",
    "or, in a client's mcpServers file:",
    "",
    ...JSON.stringify({ mcpServers: servers }, null, 2).split("\n").map((line) => `  ${line}`),
    "",
    "Stop it with Ctrl-C; every process it started ends with it.",
    ""
  ].join("\n")
}
