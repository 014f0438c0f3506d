/**
 * What MCP clients write in their files that the gateway reads otherwise, or not at all: each with what to do. These files are
 * copied from one program to the next, so a name of another client is no slip.
 */

/** Names for `mcpServers`, and whose they are. */
export const servers = new Map([["servers", "VS Code"], ["context_servers", "Zed"]])

/** Names in an entry that stand for one of ours, and what to do. */
export const renamed = new Map([
  ["httpUrl", { ours: "url", next: "Gemini CLI has it for url: rename it" }],
  ["serverUrl", { ours: "url", next: "Windsurf has it for url: rename it" }],
  ["environment", { ours: "env", next: "opencode has it for env: rename it" }],
  ["transport", {
    ours: "type",
    next: "LangChain has it for type: rename it; for \"sse\", give the server's URL for Streamable HTTP instead"
  }]
])

/** Names in an entry that change nothing here. Each gives a warning. */
export const unread = new Map([
  ["autoApprove", "which tools need no approval is the client's own"],
  ["alwaysAllow", "which tools need no approval is the client's own"],
  ["trust", "which tools need no approval is the client's own"],
  ["description", "it is for people"],
  ["timeout", "the settings here are requestTimeout and startTimeout"],
  ["envFile", "give its variables in env, as \"${NAME}\" where the gateway's environment has them"],
  ["dev", "it is for VS Code"],
  ["gallery", "it is for VS Code"],
  ["version", "it is for VS Code"],
  ["source", "it is for Zed"]
])

const tools = "the gateway passes on every tool of a server; take this away, and choose tools in the clients"
const oauth = "the gateway does not sign in; give a token in headers: {\"Authorization\": \"Bearer ${TOKEN}\"}"

/** Refused names: ignoring one would expose more than the operator asked for, or break sign-in. */
export const refused = new Map([
  ["tools", tools],
  ["includeTools", tools],
  ["excludeTools", tools],
  ["enabledTools", tools],
  ["disabledTools", tools],
  ["allowedTools", tools],
  ["oauth", oauth],
  ["auth", oauth],
  ["authProviderType", oauth],
  ["enabled", "write \"disabled\": true to leave a server out"]
])

/** What clients put in for `${…}`, by the word before a colon or a dot. */
const variables = new Map([
  ["input", "VS Code's, which asks its user"],
  ["command", "VS Code's"],
  ["config", "VS Code's"],
  ["workspaceFolder", "VS Code's and Cursor's"],
  ["workspaceFolderBasename", "VS Code's and Cursor's"],
  ["workspaceRoot", "VS Code's"],
  ["userHome", "VS Code's and Cursor's"],
  ["pathSeparator", "VS Code's and Cursor's"],
  ["/", "VS Code's and Cursor's"],
  ["file", "VS Code's and Windsurf's"],
  ["user_config", "Claude Desktop's, for its extensions"],
  ["__dirname", "Claude Desktop's, for its extensions"]
])

/**
 * The message that refuses `${…}` of another program. `undefined` if it may be shell syntax, such as `${X%.*}`. The rest after the
 * first word is not repeated, because it may be secret.
 */
export const refusalOf = (inner: string): string | undefined => {
  const [, word = "", rest = ""] = /^([^:.]*)([^]*)$/.exec(inner) ?? []
  const whose = variables.get(word) ?? (/^[A-Za-z_]\w*:[A-Za-z~/.]/.test(inner) ? "unknown here" : undefined)
  return whose === undefined
    ? undefined
    : `must not have \${${word}${
      rest && `${rest[0]}…`
    }}: it is ${whose}; write the value, or \${NAME} for an environment variable`
}

/** Whether a whole value, or all of it behind a scheme such as `Bearer`, is a variable as Gemini CLI or opencode write it. */
export const looksLikeVariable = (value: unknown): boolean =>
  typeof value === "string" &&
  /^(?:[A-Za-z]+ )?(?:\$[A-Za-z_]\w*|%[A-Za-z_]\w*%|\{env:[A-Za-z_]\w*\})$/.test(value)
