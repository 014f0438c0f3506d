/** The flags and arguments of the command. */
import type { Option } from "effect"
import type { Command } from "effect/cli"
import { Argument, Flag } from "effect/cli"
import * as Settings from "../settings/Settings.ts"

const config = Flag.Path("config", { typeName: "file" }).pipe(
  Flag.withDescription("A file with the mcpServers JSON of MCP clients; SIGHUP reloads it"),
  Flag.optional
)
const check = Flag.Boolean("check").pipe(
  Flag.withDescription("Check the configuration, print its faults and exit"),
  Flag.withDefault(false)
)
const name = Flag.String("name").pipe(
  Flag.withDescription("The name of the server of -- COMMAND in its URL; default: guessed from the command"),
  Flag.optional
)
const command = Argument.String("command").pipe(
  Argument.withDescription("After --: the command of one stdio server and its arguments"),
  Argument.variadic()
)

const flagOf = (name: string, { choices, kind }: Settings.Setting<unknown, unknown>): Flag.Flag<unknown> => {
  if (kind === "flag") return Flag.Boolean(name)
  return choices === undefined ? Flag.withMetavar(Flag.String(name), kind) : Flag.Literals(name, choices)
}

/** A flag for every setting that is not a secret. */
const settings: Readonly<Record<string, Flag.Flag<Option.Option<unknown>>>> = Object.fromEntries(
  Object.entries<Settings.Setting<unknown, unknown>>(Settings.all)
    .filter(([name]) => !Settings.secret.includes(name))
    .map(([name, setting]) => {
      const fallback = setting.shown === "" ? "" : `default: ${setting.shown}; `
      const description = `${setting.description} (${fallback}${Settings.variableName(name)})`
      return [name, Flag.optional(Flag.withDescription(flagOf(Settings.flagName(name), setting), description))]
    })
)

export const all = { config, check, name, command, settings }

export type Input = Command.Command.Config.Infer<typeof all>
