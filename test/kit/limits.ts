/** Options of a pool as they are drawn: numbers, and `off` for infinity, which JSON cannot show. */
import { Record, Schema } from "effect"

export type Limit = number | "off"

// Duplicates are drawn more often. Shrinks to the first.
export const one = Schema.Literals
export const several = <S extends Schema.Constraint>(schema: S, maximum: number) =>
  Schema.Array(schema).check(Schema.isMinLength(1), Schema.isMaxLength(maximum))

/** What is drawn for each option, by its name. */
export const drawn = <Name extends string>(values: Record<Name, ReadonlyArray<Limit>>) =>
  Schema.Struct(Record.map(values, (values: ReadonlyArray<Limit>) => Schema.Literals(values)))

export const toNumber = (limit: Limit, unit = 1): number => limit === "off" ? Infinity : limit * unit
