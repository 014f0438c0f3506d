/**
 * The stderr of a process: keeps its beginning and its end for error messages, and logs its lines.
 *
 * Keeps lines unmasked. Masks a whole line before cutting it, so that no part of a secret is left over.
 */
import { Effect, LogLevel } from "effect"
import * as Masking from "../settings/Masking.ts"
import type { BackendSettings } from "../settings/Settings.ts"

const levels = { debug: "Debug", info: "Info", warn: "Warn" } as const

/** Length of the kept beginning, and of the kept end, in characters. */
const keptLength = 2000
/** Length of a shown line, in characters. */
const lineLength = 1000
/** Length of a kept line, in characters. It leaves room for the longest secret behind the part that is shown. */
const rawLength = lineLength + Masking.longest
/** Most lines of one process that are logged per second. Further lines are only counted. */
const linesASecond = 20

export const make = (mask: (text: string) => string, level: BackendSettings["stderrLevel"]) => {
  const decoder = new TextDecoder()
  const head: Array<string> = []
  const tail: Array<string> = []
  let headLength = 0
  let tailLength = 0
  let leftOut = 0
  /** The last line, which has no line break yet. */
  let rest = ""
  const unlogged: Array<string> = []
  /** Lines beyond `linesASecond`. */
  let unloggedMore = 0
  /** True while `eachSecond` runs. */
  let logs = false
  let fork: ((effect: Effect.Effect<unknown>) => void) | undefined

  const shown = (line: string): string => {
    const masked = mask(Masking.plain(line))
    const whole = line.length < rawLength ? masked : masked.slice(0, -Masking.longest)
    return line.length < rawLength && whole.length <= lineLength ? whole : `${whole.slice(0, lineLength)}…`
  }

  const take = (line: string): void => {
    const length = Math.min(line.length, lineLength)
    if (headLength < keptLength) {
      headLength += length
      head.push(line)
    } else {
      tailLength += length
      tail.push(line)
      while (tailLength - Math.min(tail[0]?.length ?? 0, lineLength) >= keptLength) {
        tailLength -= Math.min(tail.shift()?.length ?? 0, lineLength)
        leftOut++
      }
    }
    if (unlogged.length < linesASecond) unlogged.push(line)
    else unloggedMore++
  }

  const flush = Effect.flatMap(LogLevel.isEnabled(levels[level]), (enabled) => {
    const taken = unlogged.splice(0)
    // Masking is costly, so it masks only lines that the log shows.
    const lines = enabled ? taken.map(shown) : []
    if (unloggedMore > 0) lines.push(`${unloggedMore} more lines in this second, not logged`)
    unloggedMore = 0
    return Effect.forEach(lines, (line) => Effect.logWithLevel(levels[level])(`stderr: ${line}`), { discard: true })
  })
  const eachSecond = Effect.repeat(Effect.andThen(flush, Effect.sleep("1 second")), {
    while: () => logs = unlogged.length > 0
  })
  const log = (): void => {
    if (logs || fork === undefined || unlogged.length === 0) return
    logs = true
    // An interruption logs the remaining lines: a process that ends may have written lines that are not logged yet.
    fork(Effect.onInterrupt(eachSecond, () => flush))
  }

  const push = (text: string): void => {
    const lines = (rest + text).split(/[\r\n]+/)
    rest = (lines.pop() ?? "").slice(0, rawLength)
    for (const line of lines) if (line.trim() !== "") take(line.slice(0, rawLength))
    log()
  }
  return {
    push: (chunk: Uint8Array): void => push(decoder.decode(chunk, { stream: true })),
    /** Ends the stderr. The last line may lack a line break. */
    end: (): void => push("\n"),
    /** The first and the last lines, and the number of lines left out between them. */
    text: (): string =>
      [
        ...head,
        ...leftOut === 0 ? [] : [`[${leftOut} lines left out]`],
        ...tail,
        ...rest.trim() === "" ? [] : [rest]
      ].map(shown).join("\n").trim(),
    /** Logs all lines from now on, and those that came before, in fibers that `by` starts. */
    logWith: (by: (effect: Effect.Effect<unknown>) => void): void => {
      fork = by
      log()
    }
  }
}
