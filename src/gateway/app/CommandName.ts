/** Names a back end for its URL. */

/** The nearest valid name of a back end: `My-Files` for `My Files`, `Uber` for `Über`. Empty if no character is left. */
export const urlSafe = (name: string): string =>
  name.normalize("NFKD").replace(/\p{M}/gu, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+|-+$/g, "")
    .slice(0, 64)

/** Programs and words that start a server, none of which is its name. */
const starters =
  /^(npx|p?npm|pnpx|yarn|bunx?|node|tsx|deno|uvx?|pipx|python[\d.]*|docker|podman|env|sh|bash|exec|dlx|x|run|tool|start)$/

/** Files and folders that many servers have. */
const common = /^(index|main|dist|build|out|lib|src|bin|)$/

/**
 * Guesses the server's name in a command: `server-everything` in `npx -y @scope/server-everything@1 stdio`. It is the end of the
 * first argument that is neither an option nor a variable. `--name` sets it where the guess is wrong.
 */
export const fromCommand = (command: ReadonlyArray<string>): string => {
  const paths = command.filter((arg) => !/^-|^[A-Z_]+(=|$)|\s/.test(arg)).map((arg) =>
    // Without a version, a URL's fragment and an ending.
    arg.split(/[\\/]/).map((part) => part.replace(/(?!^)[@:#=<>[].*$|\.(exe|cmd|[cm]?[jt]sx?|py|sh)$/gi, "")).map(
      urlSafe
    )
  )
  const names = paths.filter((parts) => !starters.test(parts.at(-1) ?? ""))
    .map((parts) => parts.findLast((part) => !common.test(part)))
  return names.find((name) => name !== undefined) ?? "server"
}
