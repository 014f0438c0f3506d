/** What may be taken for a duration. */
import { Duration, Predicate } from "effect"

const units = ["weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds"] as const

/** What `Duration.fromInput` may be asked: it takes `NaN`, and objects without a known unit, for zero. */
export const isDurationInput = (input: unknown): input is Duration.Input => {
  if (typeof input === "number") return !Number.isNaN(input)
  if (typeof input !== "object" || input === null) return typeof input === "string" || typeof input === "bigint"
  if (Duration.isDuration(input)) return true
  if (Array.isArray(input)) return input.length === 2 && input.every(isNumber)
  // By name, since those of `Temporal.Duration` are not its own.
  const parts = units.flatMap((unit) =>
    Predicate.hasProperty(input, unit) && input[unit] !== undefined ? [input[unit]] : []
  )
  // What says nothing may have any name: `Temporal.Duration` has months, too.
  const isKnown = Object.entries(input).every(([name, part]) =>
    units.some((unit) => unit === name) || part === 0 || part === undefined
  )
  return isKnown && parts.length > 0 && parts.every(isNumber)
}

const isNumber = (part: unknown): boolean => typeof part === "number" && !Number.isNaN(part)
