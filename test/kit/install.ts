/** A folder's own packages: those that one script alone uses, and `npm ci` of the repository does not install. */
import { spawnSync } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"

/** Installs what the folder's `package-lock.json` says, once. */
export const install = (folder: URL): void => {
  const home = fileURLToPath(folder)
  // npm writes this file last, so what an interrupted run has left is installed anew.
  if (existsSync(`${home}node_modules/.package-lock.json`)) return
  const { status } = spawnSync("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund"], {
    cwd: home,
    // The tables alone go to the standard output.
    stdio: ["ignore", "ignore", "inherit"]
  })
  if (status !== 0) throw new Error(`the packages of ${home} could not be installed`)
}
