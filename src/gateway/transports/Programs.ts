/** Finds the program of a command, and says why there is none. */
import { Result } from "effect"
import { accessSync, constants, statSync } from "node:fs"
import { delimiter, join, resolve } from "node:path"
import type * as ProcessGroup from "./ProcessGroup.ts"

/** `undefined` for a path that does not exist or that this user may not see. */
const lookAt = (path: string) => Result.getOrUndefined(Result.try(() => statSync(path)))

const isFile = (path: string): boolean => lookAt(path)?.isFile() === true

const isDirectory = (path: string): boolean => lookAt(path)?.isDirectory() === true

const isProgram = (path: string): boolean =>
  isFile(path) && Result.isSuccess(Result.try(() => accessSync(path, constants.X_OK)))

/** The file that the system runs for a command. `path` is the `PATH` of the program. `undefined` if there is no such file. */
export const find = (command: string, cwd: string | undefined, path = ""): string | undefined =>
  command.includes("/")
    ? [resolve(cwd ?? ".", command)].find(isProgram)
    : path.split(delimiter)
      .filter((directory) => directory !== "")
      .map((directory) => join(directory, command))
      .find(isProgram)

/** Why the program of an entry cannot be run, and what to do. `undefined` if it can. */
export const missing = (
  { command, cwd, env }: ProcessGroup.Command,
  mask: (text: string) => string
): string | undefined => {
  if (cwd !== undefined && !isDirectory(cwd)) return `there is no directory "${mask(cwd)}"; correct its cwd`
  if (find(command, cwd, env["PATH"] ?? process.env["PATH"]) !== undefined) return undefined
  const shown = mask(command)
  const none = `there is no program "${shown}"`
  const path = resolve(cwd ?? ".", command)
  const isPath = command.includes("/")
  if (isPath && isFile(path)) {
    return `"${shown}" may not be run: make it executable (chmod +x), or name its interpreter as the program`
  }
  if (isPath && isDirectory(path)) return `${none}: that is a directory`
  if (/\s/.test(command.trim())) {
    return `${none}; arguments belong in "args", or after -- PROGRAM, without quotes around them all`
  }
  if (isPath) return `${none}; is its path right? A relative path starts at the program's working directory`
  return `${none} in the PATH. Install it, or give its whole path.`
}
