/** Runs the gateway's command in this process. Saves the second that `Kit.run` needs to start Node. */
import { Console, Effect, Exit } from "effect"
import * as CommandLine from "../../../src/gateway/app/CommandLine.ts"

export interface Finished {
  readonly exit: number
  readonly output: string
}

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const

/**
 * Runs the command until it exits, so pass `--help`, `--check` or a fault. Never run two at once: both set `process.env` and
 * `process.exitCode`. `OTEL_…` variables have no effect, because `CommandLine.ts` reads them when it is loaded.
 */
export const runInProcess = async (
  args: ReadonlyArray<string>,
  variables: Record<string, string> = {}
): Promise<Finished> => {
  const lines: Array<string> = []
  const write = (...parts: ReadonlyArray<unknown>) => void lines.push(`${parts.join(" ")}\n`)
  const before = Object.keys(variables).map((name) => [name, process.env[name]] as const)
  const codeBefore = process.exitCode
  const heardBefore = signals.map((signal) => process.listeners(signal))
  Object.assign(process.env, variables)
  try {
    const exit = await Effect.runPromiseExit(
      Effect.provideService(CommandLine.runWith(args), Console.Console, { ...console, log: write, error: write })
    )
    return { exit: Exit.isFailure(exit) ? 1 : Number(process.exitCode ?? 0), output: lines.join("") }
  } finally {
    process.exitCode = codeBefore
    // `Signals.hurry` waits for signals until the process ends. It starts after the current turn.
    await new Promise((resolve) => setImmediate(resolve))
    for (const [i, signal] of signals.entries()) {
      for (const listener of process.listeners(signal)) {
        if (heardBefore[i]?.includes(listener) !== true) process.off(signal, listener)
      }
    }
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  }
}
