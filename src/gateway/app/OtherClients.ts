/**
 * Names and variables from the files of MCP clients that mean something else here, or nothing, and what to do about each. People
 * copy these files from one program to the next, so another client's name is not a misspelling.
 */

/** Other names for `mcpServers`, and the clients that use them. */
export const servers = new Map([["servers", "VS Code"], ["context_servers", "Zed"]])

/** Other clients' names for the gateway's names in an entry, and what to do. */
export const renamed = new Map([
  ["httpUrl", { ours: "url", next: "this is Gemini CLI's name for url: rename it" }],
  ["serverUrl", { ours: "url", next: "this is Windsurf's name for url: rename it" }],
  ["environment", { ours: "env", next: "this is opencode's name for env: rename it" }],
  ["transport", {
    ours: "type",
    next: "this is LangChain's name for type: rename it; for \"sse\", give the URL for Streamable HTTP instead"
  }]
])

/** Names in an entry that the gateway ignores with a warning. */
export const unread = new Map([
  ["autoApprove", "the client decides which tools need no approval"],
  ["alwaysAllow", "the client decides which tools need no approval"],
  ["trust", "the client decides which tools need no approval"],
  ["description", "people read it"],
  ["timeout", "the gateway's settings are requestTimeout and startTimeout"],
  ["envFile", "list its variables in env, as \"${NAME}\" for those in the gateway's environment"],
  ["dev", "VS Code reads it"],
  ["gallery", "VS Code reads it"],
  ["version", "VS Code reads it"],
  ["source", "Zed reads it"]
])

const tools = "the gateway passes on every tool of a server; remove this, and choose tools in the clients"
const oauth = "the gateway does not sign in; give a token in headers: {\"Authorization\": \"Bearer ${TOKEN}\"}"

/** Names that the gateway refuses. Ignoring one would expose more than the operator asked for, or break sign-in. */
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

/** Variables that other clients replace, by the word before a colon or a dot, and whose they are. */
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
 * The message that refuses another program's `${…}`. `undefined` if the text may be shell syntax, such as `${X%.*}`. The message
 * repeats only the first word, because the rest may be secret.
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

/** Whether a value is a variable as Gemini CLI or opencode write it. A scheme such as `Bearer` may come before the variable. */
export const looksLikeVariable = (value: unknown): boolean =>
  typeof value === "string" &&
  /^(?:[A-Za-z]+ )?(?:\$[A-Za-z_]\w*|%[A-Za-z_]\w*%|\{env:[A-Za-z_]\w*\})$/.test(value)
