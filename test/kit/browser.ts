/** The Chromium of the tests. */
import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs"
import type { Browser } from "playwright-core"
import { chromium } from "playwright-core"
import { chromiumPackage, findChromium } from "./programs.ts"

export const launch = (): Promise<Browser> => {
  const found = findChromium()
  if (found === undefined) throw new Error("no Chromium: install it, or set CHROMIUM_PATH")
  const args = ["--no-sandbox"]
  if (found !== chromiumPackage) return chromium.launch({ executablePath: found, args })
  const directory = unpackOnce()
  const env = {
    ...process.env,
    LD_LIBRARY_PATH: `${directory}/al2023/lib`,
    FONTCONFIG_PATH: `${directory}/fonts`
  }
  return chromium.launch({ executablePath: `${directory}/chromium`, args, env })
}

/**
 * Unpacks `@sparticuz/chromium` into `node_modules/.cache` once. The package unpacks into `TMPDIR`, and includes NSS and NSPR only
 * in AWS Lambda. So a child process gets a new `TMPDIR` and a Lambda variable. If two runs unpack at once, the first rename wins.
 */
const unpackOnce = (): string => {
  const root = new URL("../../", import.meta.url).pathname
  const cache = `${root}node_modules/.cache/`
  const { version } = JSON.parse(readFileSync(`${chromiumPackage}/package.json`, "utf8"))
  const directory = `${cache}chromium-${version}`
  if (existsSync(directory)) return directory
  mkdirSync(cache, { recursive: true })
  const fresh = mkdtempSync(`${cache}chromium-`)
  const script = "import('@sparticuz/chromium').then(({ default: chromium }) => chromium.executablePath())"
  execFileSync(process.execPath, ["--eval", script], {
    cwd: root,
    env: { ...process.env, TMPDIR: fresh, AWS_EXECUTION_ENV: "AWS_Lambda_nodejs24.x" }
  })
  // The package's `fonts.conf` names `/tmp/fonts`; point it at this directory.
  const fonts = `${fresh}/fonts/fonts.conf`
  writeFileSync(fonts, readFileSync(fonts, "utf8").replace("<dir>/tmp/fonts</dir>", `<dir>${directory}/fonts</dir>`))
  try {
    renameSync(fresh, directory)
  } catch (error) {
    rmSync(fresh, { recursive: true })
    if (!existsSync(directory)) throw error
  }
  return directory
}
