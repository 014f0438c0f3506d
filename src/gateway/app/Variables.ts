/** Replaces variables in the values of a configuration file: `${NAME}`, `${NAME:-default}`, and `${env:NAME}` of other clients. */
import { Predicate, Record } from "effect"
import * as Masking from "../settings/Masking.ts"
import type { Fault } from "../transports/Kinds.ts"

export type Environment = Readonly<Record<string, string | undefined>>

/** Matches a variable, or else another client's `${input:key}`. A shell's `${NAME%.*}` stays as it is. */
const reference = /\$\{(?:(?:env:)?([A-Za-z_]\w*)(?::-([^}]*))?|([A-Za-z_]\w*):[A-Za-z~/.][^}]*)\}/g

/** Every variable that a text names. */
export const namesIn = (text: string): ReadonlyArray<string> =>
  Array.from(text.matchAll(reference), ([, name]) => name ?? "")

export interface Reading {
  readonly environment: Environment
  /** Gets the value of every variable that is replaced. Messages hide these values. */
  readonly secrets: Array<string>
  readonly fault: Fault
}

/** Replaces the variables in every text of a value. */
export const expand = (path: string, value: unknown, reading: Reading): unknown => {
  const { environment, fault, secrets } = reading
  if (Array.isArray(value)) return value.map((item, i) => expand(`${path}[${i}]`, item, reading))
  if (Predicate.isObject(value)) {
    return Record.map(
      value,
      (item: unknown, name: string) => expand(`${path}${Masking.member(name)}`, item, reading)
    )
  }
  if (typeof value !== "string") return value
  return value.replace(reference, (_, name: string | undefined, fallback: string | undefined, other: string) => {
    // The message does not repeat what follows `other`, which may be secret.
    if (name === undefined) fault(path, `must not have \${${other}:…}: the gateway reads \${NAME} from its environment`)
    if (fallback?.includes("${") === true) fault(path, `must not have a variable in the default of \${${name}}`)
    // Own properties only: `${constructor}` must not find the inherited property.
    const found = name !== undefined && Object.hasOwn(environment, name) ? environment[name] : undefined
    if (found !== undefined && (found !== "" || fallback === undefined)) {
      secrets.push(found)
      return found
    }
    if (name !== undefined && fallback === undefined) {
      fault(path, `the environment variable ${name} is not set; set it, or write \${${name}:-default}`)
    }
    return fallback ?? ""
  })
}
