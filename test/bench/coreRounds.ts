/** Runs a case: one process a subject, measured in turn, round after round. */
import type { ChildProcess } from "node:child_process"
import { fork } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"
import * as Progress from "../kit/progress.ts"
import type { Case } from "./coreCases.ts"
import type { Answer } from "./coreWorker.ts"
import type { Spread } from "./spread.ts"
import { spreadOf } from "./spread.ts"

export interface Row {
  readonly name: string
  readonly figure: Spread
  /** Relative to the first subject in the same round. Undefined for the first subject. */
  readonly ratio: Spread | undefined
}

const worker = fileURLToPath(new URL("coreWorker.ts", import.meta.url))

/** Starts and fills a subject. A million entries of the largest peer need 4 GB. */
const start = async (one: Case, name: string): Promise<ChildProcess> => {
  Progress.step(`${one.name}, ${one.sessions.toLocaleString("en")} sessions: fills ${name}`)
  const child = fork(worker, [one.kind, name, String(one.sessions)], {
    execArgv: ["--expose-gc", "--max-old-space-size=12000"]
  })
  await once(child, "message")
  return child
}

const ask = async (child: ChildProcess, one: Case, name: string): Promise<number> => {
  Progress.step(`${one.name}, ${one.sessions.toLocaleString("en")} sessions: measures ${name}`)
  child.send(one.request)
  const [answer]: ReadonlyArray<Answer> = await once(child, "message")
  if (answer === undefined) throw new Error(`no answer to ${one.name}`)
  return one.figure(answer)
}

const stop = async (child: ChildProcess): Promise<void> => {
  const exit = once(child, "exit")
  child.kill("SIGKILL")
  await exit
}

export const measure = async (one: Case, rounds: number): Promise<ReadonlyArray<Row>> => {
  const figures = one.subjects.map((): Array<number> => [])
  if (one.once === true || one.request.measure === "memory") {
    for (let round = 0; round < (one.request.measure === "memory" ? 1 : rounds); round++) {
      for (const [i, name] of one.subjects.entries()) {
        const child = await start(one, name)
        figures[i]?.push(await ask(child, one, name))
        await stop(child)
      }
    }
  } else {
    const children: Array<readonly [name: string, child: ChildProcess]> = []
    for (const name of one.subjects) children.push([name, await start(one, name)])
    // The first round warms the compiler up, and is not counted.
    for (let round = 0; round <= rounds; round++) {
      for (const [i, [name, child]] of children.entries()) {
        const figure = await ask(child, one, name)
        if (round > 0) figures[i]?.push(figure)
      }
    }
    await Promise.all(children.map(([, child]) => stop(child)))
  }
  const [ours = []] = figures
  return one.subjects.map((name, i) => ({
    name,
    figure: spreadOf(figures[i] ?? []),
    ratio: i === 0 ? undefined : spreadOf((figures[i] ?? []).map((figure, round) => figure / (ours[round] ?? NaN)))
  }))
}
