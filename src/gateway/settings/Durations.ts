/** Checks the input of `Duration.fromInput`. */
import { Duration, Predicate } from "effect"

const units = ["weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds"] as const

/** Whether `Duration.fromInput` reads this input correctly. It reads `NaN`, and objects without a known unit, as zero. */
export const isDurationInput = (input: unknown): input is Duration.Input => {
  if (typeof input === "number") return !Number.isNaN(input)
  if (typeof input !== "object" || input === null) return typeof input === "string" || typeof input === "bigint"
  if (Duration.isDuration(input)) return true
  if (Array.isArray(input)) return input.length === 2 && input.every(isNumber)
  // Reads each unit by name: in a `Temporal.Duration` the units are inherited properties.
  const parts = units.flatMap((unit) =>
    Predicate.hasProperty(input, unit) && input[unit] !== undefined ? [input[unit]] : []
  )
  // Ignores unknown parts that are zero, such as the months of a `Temporal.Duration`.
  const isKnown = Object.entries(input).every(([name, part]) =>
    units.some((unit) => unit === name) || part === 0 || part === undefined
  )
  return isKnown && parts.length > 0 && parts.every(isNumber)
}

const isNumber = (part: unknown): boolean => typeof part === "number" && !Number.isNaN(part)
