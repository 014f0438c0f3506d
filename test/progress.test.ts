/** The progress line of long runs. */
import { assert, describe, it } from "vitest"
import * as Progress from "./kit/progress.ts"

const erase = "\r\u001b[K"

/** A progress line whose clock stands still until `wait`. */
const make = (env: NodeJS.ProcessEnv = {}, isTTY = true, columns = 80) => {
  const written: Array<string> = []
  let now = 0
  const progress = Progress.make({ isTTY, columns, write: (text) => written.push(text) }, env, () => now)
  return { ...progress, written, wait: (millis: number) => void (now += millis) }
}

describe("progress line", () => {
  it("rewrites one line with the seconds since the start", () => {
    const { clear, step, wait, written } = make()
    step("builds")
    wait(12_000)
    step("measures")
    clear()
    assert.deepStrictEqual(written, [`${erase}0 s: builds`, `${erase}12 s: measures`, erase])
  })

  it("shows a loop at most ten times a second", () => {
    const { tick, wait, written } = make()
    for (let done = 1; done <= 30; done++) {
      tick(`${done} of 30`)
      wait(10)
    }
    assert.deepStrictEqual(written, [`${erase}0 s: 1 of 30`, `${erase}0 s: 11 of 30`, `${erase}0 s: 21 of 30`])
  })

  it("fits into the width of the terminal", () => {
    const { step, written } = make({}, true, 10)
    step("a long explanation")
    assert.deepStrictEqual(written, [`${erase}0 s: a lo`])
  })

  it("writes nothing without a terminal, in CI, with NO_COLOR or on a dumb terminal", () => {
    for (
      const [env, isTTY] of [[{}, false], [{ CI: "true" }, true], [{ NO_COLOR: "1" }, true], [
        { TERM: "dumb" },
        true
      ]] as const
    ) {
      const { clear, step, tick, written } = make(env, isTTY)
      step("builds")
      tick("1 of 2")
      clear()
      assert.deepStrictEqual(written, [])
    }
  })
})
