/** Installs the packages of a folder, which one script alone uses. `npm ci` of the repository does not install them. */
import { spawnSync } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"

/** Installs the packages of the folder's `package-lock.json`, once. */
export const install = (folder: URL): void => {
  const home = fileURLToPath(folder)
  // npm writes this file last, so an interrupted installation starts again.
  if (existsSync(`${home}node_modules/.package-lock.json`)) return
  const { status } = spawnSync("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund"], {
    cwd: home,
    // The standard output has only the tables.
    stdio: ["ignore", "ignore", "inherit"]
  })
  if (status !== 0) throw new Error(`the packages of ${home} could not be installed`)
}
