/** How the command speaks to a person: colours only where they are seen, errors short and with the next step. */
import { Console, Effect, Layer, Logger } from "effect"
import { CliOutput } from "effect/cli"
import * as Masking from "./Masking.ts"
import * as Settings from "./Settings.ts"

/** Whether what goes to a stream may have colours: `NO_COLOR` and `TERM=dumb` forbid them, `FORCE_COLOR` asks for them. */
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

/** A wrong command line gets its fault and where to read on, instead of the whole help before it. */
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
          `\n--${Settings.flagName(name)} is no flag, because everyone on the machine can read a command line: ` +
          `set ${Settings.variableName(name)}.`
        )
        return Console.error([text, ...hints, nextStep].join("\n"))
      }
    }
  }
})

const pretty = Logger.consolePretty({ colors: hasColors(process.stdout, process.env) })

/** JSON lines, but pretty on a terminal. A terminal sees no control characters of others, also where it shows the lines of a file. */
const logger = process.stdout.isTTY
  ? Logger.make<unknown, void>((options) => pretty.log({ ...options, message: plain(options.message) }))
  : Logger.withConsoleLog(Logger.map(Logger.formatJson, Masking.plain))

const plain = (message: unknown): unknown =>
  typeof message === "string" ? Masking.plain(message) : Array.isArray(message) ? message.map(plain) : message

/** The output of the whole command. */
export const layer = Layer.merge(presenter, Logger.layer([logger]))

/** Tells why the command gives up, and lets it end with 1. */
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
