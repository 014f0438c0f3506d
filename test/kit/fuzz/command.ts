/** Gives cases of the configuration's fuzz to the command, in this process, with `--check`: it must say what reading them said. */
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as Config from "../../../src/gateway/app/Config.ts"
import * as Settings from "../../../src/gateway/settings/Settings.ts"
import * as Command from "../gateway/command.ts"
import type { ConfigCase } from "./config.ts"
import { secret } from "./config.ts"

/** Why the command did not do with a case as it must; `undefined` if it did. */
export const check = async (test: ConfigCase, directory: string): Promise<string | undefined> => {
  const file = join(directory, `${test.index}.json`)
  writeFileSync(file, test.text)
  // A flag of the command line has no value.
  const flags = Object.entries(test.flags).filter(([name]) => Settings.all[name]?.kind !== "flag")
  const read = Config.load({
    flags: Object.fromEntries(flags),
    environment: { ...process.env, ...test.environment },
    file: { name: file, text: readFileSync(file, "utf8") },
    entries: {}
  })
  const { exit, output } = await Command.runInProcess(
    ["--check", "--config", file, ...flags.map(([name, value]) => `--${Settings.flagName(name)}=${String(value)}`)],
    // On a terminal the command would colour its errors.
    {
      NO_COLOR: "1",
      ...Object.fromEntries(Object.entries(test.environment).map(([name, value]) => [name, value ?? ""]))
    }
  )
  if (exit !== 0 && exit !== 1) return `it ended with ${exit}: ${output}`
  if (/\n {4}at |node:internal|\[object /.test(output)) return `a stack or an object is told: ${output}`
  if (output.includes(secret)) return `a secret is told: ${output}`
  const choice = flags.find(([name, value]) => Settings.all[name]?.choices?.includes(String(value)) === false)
  if (choice !== undefined) {
    // The command line itself has the choices, and is read before anything else.
    const flag = `--${Settings.flagName(choice[0])}`
    return exit === 1 && /(?:Invalid|Missing) value for flag/.test(output) && output.includes(flag)
      ? undefined
      : `told ${output}, not the choices of ${flag}`
  }
  if (read instanceof Config.InvalidConfig) {
    return exit === 1 && output.startsWith(`${read.message}\nCorrect it and try again.`)
      ? undefined
      : `told ${output}, not ${read.message}`
  }
  // What is valid by itself may still name no program, no directory, no file of keys, no port, no database.
  return exit === 0
    ? output.startsWith("The configuration is valid. Back ends: ") ? undefined : `told ${output}`
    : /there is no program|there is no directory|cannot be read|does not exist|--insecure|TLS needs both|--cluster needs more/
        .test(output)
    ? undefined
    : `refused a valid one: ${output}`
}
