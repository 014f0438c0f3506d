/** The Chromium of the tests. */
import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
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
  const { version } = JSON.parse(readFileSync(`${chromiumPackage}/package.json`, "utf8"))
  const cache = fileURLToPath(new URL("../../node_modules/.cache/", import.meta.url))
  const directory = `${cache}chromium-${version}`
  if (existsSync(directory)) return directory
  mkdirSync(cache, { recursive: true })
  const fresh = mkdtempSync(`${cache}chromium-`)
  try {
    const script = "import('@sparticuz/chromium').then(({ default: chromium }) => chromium.executablePath())"
    execFileSync(process.execPath, ["--eval", script], {
      cwd: cache,
      env: { ...process.env, TMPDIR: fresh, AWS_EXECUTION_ENV: "AWS_Lambda_nodejs24.x" }
    })
    // The package's `fonts.conf` names directories in `/tmp`; point it at this one.
    const fonts = `${fresh}/fonts/fonts.conf`
    writeFileSync(fonts, readFileSync(fonts, "utf8").replaceAll(">/tmp/fonts", `>${directory}/fonts`))
    renameSync(fresh, directory)
  } catch (error) {
    rmSync(fresh, { recursive: true })
    if (!existsSync(directory)) throw error
  }
  return directory
}
