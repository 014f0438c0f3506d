/** Random options of a pool: numbers, and `off` for infinity, which JSON cannot show. */
import { Record, Schema } from "effect"

export type Limit = number | "off"

// A value that is listed twice is drawn twice as often. Shrinking prefers the first value.
export const one = Schema.Literals
export const several = <S extends Schema.Constraint>(schema: S, maximum: number) =>
  Schema.Array(schema).check(Schema.isMinLength(1), Schema.isMaxLength(maximum))

/** A schema that draws a value for each option. */
export const drawn = <Name extends string>(values: Record<Name, ReadonlyArray<Limit>>) =>
  Schema.Struct(Record.map(values, (values: ReadonlyArray<Limit>) => Schema.Literals(values)))

export const toNumber = (limit: Limit, unit = 1): number => limit === "off" ? Infinity : limit * unit
