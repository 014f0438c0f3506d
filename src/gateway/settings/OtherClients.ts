/**
 * What MCP clients write in their files that the gateway reads otherwise, or not at all: each with what to do. These files are
 * copied from one program to the next, so a name of another client is no slip.
 */

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
 * Why `${…}` is refused, where it is another program's; `undefined` if it may be meant for a shell, such as `${X%.*}`. What stands
 * behind the first word is not repeated.
 */
export const foreign = (inner: string): string | undefined => {
  const [, word = "", rest = ""] = /^([^:.]*)([^]*)$/.exec(inner) ?? []
  const whose = variables.get(word) ?? (/^[A-Za-z_]\w*:[A-Za-z~/.]/.test(inner) ? "unknown here" : undefined)
  return whose === undefined
    ? undefined
    : `must not have \${${word}${
      rest && `${rest[0]}…`
    }}: it is ${whose}; write the value, or \${NAME} for an environment variable`
}

/** Whether a whole value, or all of it behind a scheme such as `Bearer`, is a variable as Gemini CLI or opencode write it. */
export const isOtherVariable = (value: unknown): boolean =>
  typeof value === "string" &&
  /^(?:[A-Za-z]+ )?(?:\$[A-Za-z_]\w*|%[A-Za-z_]\w*%|\{env:[A-Za-z_]\w*\})$/.test(value)
