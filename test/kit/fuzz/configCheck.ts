/** Reads the configuration of a case as the gateway does, and says whether that is as it must be. */
import { Duration, Effect } from "effect"
import * as Config from "../../../src/gateway/app/Config.ts"
import * as Gateway from "../../../src/gateway/Gateway.ts"
import * as Settings from "../../../src/gateway/settings/Settings.ts"
import * as Backends from "../../../src/gateway/transports/Backends.ts"
import type { ConfigCase } from "./config.ts"
import { fileName, leftOut, secret } from "./config.ts"

/** What a fault may say is allowed, or what to do. */
const allowed =
  /^[^\n]*: (must be |must not |must have |must name |needs another name|appears twice |unknown; (?:did you mean [A-Za-z_]+\? ?)?(?:allowed are |--help lists |this is [A-Za-z ]+'s name for |the gateway |write |$)|the file is not JSON|the file must be |a back end's name is |is only for stdio back ends|"[^\n]*" is not a (?:variable|header) name|command, args and cwd must not |the environment variable [A-Za-z0-9_]+ is not set; set it)/

/** Reads the configuration of a case; why that is not as it must be, `undefined` if it is. */
export const check = (test: ConfigCase): string | undefined => {
  const read = reading(test)
  if (typeof read === "string") return read
  if (!(read instanceof Config.InvalidConfig || read instanceof Backends.InvalidGatewayOptions)) {
    if (test.paths !== undefined && test.paths.length > 0) return `no fault, but ${test.paths.join()}`
    return validity(read) ??
      unequal("warned of", read.warnings.map(pathOf), test.warned) ??
      unequal("served", [...read.backends.keys()], test.served) ??
      read.warnings.map(unfit).find((reason) => reason !== undefined)
  }
  const { faults, message } = read
  if (faults.length === 0) return "invalid without a fault"
  for (const text of faults) {
    if (!allowed.test(text)) return `a fault that does not say what is allowed: ${JSON.stringify(text.slice(0, 500))}`
    const reason = unfit(text)
    if (reason !== undefined) return reason
  }
  if (/\n {4}at /.test(message)) return `a stack is told: ${JSON.stringify(message)}`
  return unequal("told", faults.map(pathOf), test.paths)
}

/** Why a fault or a warning must not be printed; `undefined` if it may. */
const unfit = (text: string): string | undefined => {
  // Control characters of names would reach the terminal.
  if ([...text].some((character) => character < " " || (character >= "\u007f" && character <= "\u009f"))) {
    return `a control character in ${JSON.stringify(text)}`
  }
  if (text.includes(secret)) return `a secret is told: ${JSON.stringify(text)}`
  return /\[object |native code/.test(text) ? `an object is told: ${JSON.stringify(text)}` : undefined
}

const unequal = (
  what: string,
  found: ReadonlyArray<string>,
  expected: ReadonlyArray<string> | undefined
): string | undefined => {
  const sorted = JSON.stringify(found.toSorted())
  return expected === undefined || sorted === JSON.stringify(expected)
    ? undefined
    : `${what} ${sorted}, not ${JSON.stringify(expected)}`
}

/** Faults about names in a record are told at the record, those of values at the value. */
const pathOf = (text: string): string => text.slice(0, text.indexOf(": "))

const reading = (test: ConfigCase) => {
  try {
    return test.options === undefined
      ? Config.load({
        flags: test.flags,
        environment: test.environment,
        file: { name: fileName, text: test.text },
        entries: {}
      })
      : Effect.runSync(Effect.match(Gateway.config(test.options), {
        onFailure: (error) => error,
        onSuccess: (config) => ({ ...config, warnings: [] })
      }))
  } catch (error) {
    return `a defect: ${error instanceof Error ? error.stack : String(error)}`
  }
}

const variable = /\$\{(?:env:)?[A-Za-z_]\w*(?::-[^}]*)?\}/

/** Why a configuration that was taken makes no sense. */
const validity = ({ backends, settings }: Config.GatewayConfig): string | undefined => {
  if (backends.size === 0) return "no back end"
  for (const table of [settings, ...[...backends.values()].map((backend) => backend.settings)]) {
    for (const [name, value] of Object.entries(table)) {
      const kind = Settings.all[name]?.kind
      // The one count without a default: `sessionsPerKey` decides.
      const isOpen = name === "maxSessionsPerKey" && value === Infinity
      const right = kind === "duration"
        ? Duration.isDuration(value) && !Duration.isNegative(value)
        : kind === "count" || kind === "bytes"
        ? Number.isSafeInteger(value) || isOpen
        : kind === "flag"
        ? typeof value === "boolean"
        : kind === "list"
        ? Array.isArray(value) && value.every((item) => typeof item === "string" && item !== "")
        : typeof value === "string"
      const texts = Array.isArray(value) ? value : [value]
      if (texts.some((text) => typeof text === "string" && variable.test(text))) {
        return `a variable that is taken as it stands, in the setting ${name}`
      }
      if (!right) return `the setting ${name} has the value ${String(value)}`
    }
  }
  for (const { mask, name, target } of backends.values()) {
    if (!Backends.isName(name)) return `the name ${JSON.stringify(name)}`
    if (name === leftOut) return "a disabled back end"
    const texts = target._tag === "Stdio"
      ? [target.command.command, target.command.cwd ?? "", ...target.command.args, ...Object.values(target.command.env)]
      : [target.url, ...Object.values(target.headers)]
    for (const text of texts) {
      if (typeof text !== "string" || text.includes("\0")) return `the text ${JSON.stringify(text)}`
      if (/\[object |native code/.test(text)) return `an object in ${text}`
      if (variable.test(text)) return `a variable that is taken as it stands: ${text}`
    }
    if (texts[0] === "") return "nothing to run"
    const isSecret = texts.slice(target._tag === "Stdio" ? 0 : 1).some((text) => text.includes(secret))
    if (isSecret && mask(`a ${secret} b`).includes(secret)) return "a secret that is not masked"
  }
  return undefined
}

export const describe = (test: ConfigCase, reason: string): string =>
  [
    `configuration case ${test.index} (${test.kind}): ${reason}`,
    `  file: ${JSON.stringify(test.text.slice(0, 2000))}`,
    `  flags: ${JSON.stringify(test.flags)}, environment: ${JSON.stringify(test.environment)}`
  ].join("\n")
