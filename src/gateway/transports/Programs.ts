/** Finds the program of a command, and how to start it: on Windows `npx` is a batch file, which only `cmd.exe` runs. */
import { Result } from "effect"
import { accessSync, constants, statSync } from "node:fs"
import { posix, win32 } from "node:path"

/** The system on which a program is looked for. Tests pass a system other than this machine. */
export interface System {
  readonly platform: string
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly isProgram: (path: string) => boolean
}

/** This machine, with the environment that the program gets. */
export const here = (environment: System["environment"]): System => ({
  platform: process.platform,
  environment,
  isProgram
})

export const isWindows = process.platform === "win32"

/** `undefined` for a path that does not exist or that this user may not see. */
const lookAt = (path: string) => Result.getOrUndefined(Result.try(() => statSync(path)))

export const isDirectory = (path: string): boolean => lookAt(path)?.isDirectory() === true

/** Whether a path is a file that this user may run. On Windows its extension decides instead; see `find`. */
function isProgram(path: string): boolean {
  if (lookAt(path)?.isFile() !== true) return false
  return isWindows || Result.isSuccess(Result.try(() => accessSync(path, constants.X_OK)))
}

const hasDirectory = (command: string, windows: boolean): boolean =>
  command.includes("/") || (windows && command.includes("\\"))

/** A command that `find` did not find. `shown` is the command with secrets masked. `separate` says where its arguments belong. */
export interface Missing {
  readonly command: string
  readonly cwd: string | undefined
  readonly shown: string
  readonly separate: string
}

/** Why a program cannot be run, and what to do. */
export const whyMissing = ({ command, cwd, separate, shown }: Missing): string => {
  const none = `there is no program "${shown}"`
  const path = (isWindows ? win32 : posix).resolve(cwd ?? ".", command)
  const isPath = hasDirectory(command, isWindows)
  if (isPath && lookAt(path)?.isFile() === true) {
    return `"${shown}" may not be run: make it executable (chmod +x), or name its interpreter as the program`
  }
  if (isPath && isDirectory(path)) return `${none}: that is a directory`
  if (/\s/.test(command.trim())) return `${none}; ${separate}`
  if (isPath) return `${none}; is its path right? A relative path starts at the program's working directory`
  return `${none} in the PATH. Install it, or give its whole path.`
}

/** The file that the system runs for a command. `undefined` if there is none. */
export const find = (command: string, cwd: string | undefined, system: System): string | undefined => {
  const { environment, isProgram, platform } = system
  const windows = platform === "win32"
  const path = windows ? win32 : posix
  // On Windows the case of variables does not matter; `PATH` is usually written `Path` there.
  const variable = (name: string) =>
    environment[name] ?? Object.entries(environment).find(([key]) => windows && key.toUpperCase() === name)?.[1]
  const directories = (variable("PATH") ?? "").split(path.delimiter).filter((directory) => directory !== "")
  const places = hasDirectory(command, windows)
    ? [path.resolve(cwd ?? ".", command)]
    : directories.map((directory) => path.join(directory, command))
  // A name with an extension is tried unchanged first.
  const endings = windows ? (variable("PATHEXT") ?? ".COM;.EXE;.BAT;.CMD").split(";") : []
  const names = windows && path.extname(command) === "" ? endings : ["", ...endings]
  return places.flatMap((place) => (windows ? names : [""]).map((ending) => `${place}${ending}`)).find(isProgram)
}

/** The arguments of `spawn`. */
export interface Spawnable {
  readonly file: string
  readonly args: ReadonlyArray<string>
  /** Whether the arguments are already quoted. */
  readonly windowsVerbatimArguments: boolean
}

export const spawnable = (
  command: string,
  args: ReadonlyArray<string>,
  cwd: string | undefined,
  system: System
): Spawnable => {
  const asIs = { file: command, args, windowsVerbatimArguments: false }
  if (system.platform !== "win32") return asIs
  const file = find(command, cwd, system)
  if (file === undefined || !/\.(cmd|bat)$/i.test(file)) return asIs
  const line = [escaped(file.includes(" ") ? `"${file}"` : file), ...args.map((arg) => escaped(escaped(quoted(arg))))]
  const shell = system.environment["ComSpec"] ?? system.environment["COMSPEC"] ?? "cmd.exe"
  return { file: shell, args: ["/d", "/s", "/c", `"${line.join(" ")}"`], windowsVerbatimArguments: true }
}

/** Quotes an argument for a Windows program: escapes quotes, and backslashes before a quote. */
const quoted = (arg: string): string => `"${arg.replace(/(\\*)"/g, "$1$1\\\"").replace(/(\\+)$/, "$1$1")}"`

/** Escapes a text for `cmd.exe`, so that it takes each character literally. An argument of a batch file needs this twice. */
const escaped = (text: string): string => text.replace(/[()[\]%!^"`<>&|;, *?]/g, "^$&")
