/** The peers that are not part of Effect, installed for the benchmarks alone in `test/bench/node_modules`. */
import { spawnSync } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"

const home = fileURLToPath(new URL(".", import.meta.url))

/** Installs what `package-lock.json` says, once. */
export const install = (): void => {
  // npm writes this file last, so what an interrupted run has left is installed anew.
  if (existsSync(`${home}node_modules/.package-lock.json`)) return
  const { status } = spawnSync("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund"], {
    cwd: home,
    // The tables alone go to the standard output.
    stdio: ["ignore", "ignore", "inherit"]
  })
  if (status !== 0) throw new Error("the peers could not be installed")
}
