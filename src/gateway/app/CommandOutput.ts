/** The output of the command: help, errors with the next step, and the log. Only a terminal gets colours. */
import { Console, Effect, Layer, Logger } from "effect"
import { CliOutput } from "effect/cli"
import * as Masking from "../settings/Masking.ts"
import * as Settings from "../settings/Settings.ts"

/** Whether a stream gets colours. `NO_COLOR` and `TERM=dumb` forbid them; `FORCE_COLOR` asks for them. */
export const hasColors = (
  stream: { readonly isTTY?: boolean | undefined },
  environment: Readonly<Record<string, string | undefined>>
): boolean => {
  const { FORCE_COLOR: force = "", NO_COLOR: no = "", TERM: term } = environment
  if (no !== "" || term === "dumb") return false
  return stream.isTTY === true || !["", "0", "false"].includes(force.toLowerCase())
}

const formatter = (stream: NodeJS.WriteStream) => CliOutput.defaultFormatter({ colors: hasColors(stream, process.env) })

const nextStep = "\nUsage: effect-session-pool [flags] [-- COMMAND ARGS…]\n" +
  "All flags, with examples: effect-session-pool --help"

/** For a wrong command line prints the fault and how to get help, instead of the whole help. */
const presenter = CliOutput.layerPresenter({
  present: (event) => {
    switch (event._tag) {
      case "Help":
        return Console.log(formatter(process.stdout).formatHelpDoc(event.helpDoc))
      case "Version":
        return Console.log(formatter(process.stdout).formatVersion(event.name, event.version))
      case "InvalidInvocation": {
        const text = formatter(process.stderr).formatErrors(event.errors).trimStart()
        const secrets = Settings.secret.filter((name) => text.includes(`--${Settings.flagName(name)}`))
        const hints = secrets.map((name) =>
          `\n--${Settings.flagName(name)} is not a flag, because everyone on the machine can read a command line. ` +
          `Set ${Settings.variableName(name)} instead.`
        )
        return Console.error([text, ...hints, nextStep].join("\n"))
      }
    }
  }
})

const pretty = Logger.consolePretty({ colors: hasColors(process.stdout, process.env) })

/** Logs JSON lines, but pretty text on a terminal. Removes control characters, which a client or a server may have sent. */
const logger = process.stdout.isTTY
  ? Logger.make<unknown, void>((options) => pretty.log({ ...options, message: plain(options.message) }))
  : Logger.withConsoleLog(Logger.map(Logger.formatJson, Masking.plain))

const plain = (message: unknown): unknown =>
  typeof message === "string" ? Masking.plain(message) : Array.isArray(message) ? message.map(plain) : message

/** The output of the whole command. */
export const layer = Layer.merge(presenter, Logger.layer([logger]))

/** Prints why the command fails, and sets its exit code to 1. */
export const fail = (message: string): Effect.Effect<void> => {
  const [first = "", ...rest] = Masking.plain(message).split("\n")
  const red = hasColors(process.stderr, process.env) ? `\u001b[31m${first}\u001b[0m` : first
  return Effect.andThen(
    Console.error([red, ...rest].join("\n")),
    Effect.sync(() => {
      process.exitCode = 1
    })
  )
}
