/**
 * One line on stderr that a long run rewrites, such as `12 s: 3,000 of 20,000 sequences`. It appears on a terminal only, so the output
 * that a file or another program gets stays clean.
 */

interface Terminal {
  readonly isTTY?: boolean | undefined
  readonly columns?: number | undefined
  readonly write: (text: string) => unknown
}

const erase = "\r\u001b[K"
/** Milliseconds between two lines of a loop. */
const interval = 100

export const make = (terminal: Terminal, env: NodeJS.ProcessEnv, now = () => performance.now()) => {
  const isPlain = env["TERM"] === "dumb" || [env["NO_COLOR"], env["CI"]].some((value) => (value ?? "") !== "")
  const isShown = terminal.isTTY === true && !isPlain
  const started = now()
  let last = -Infinity
  const step = (text: string): void => {
    if (!isShown) return
    last = now()
    // A line as wide as the terminal would wrap, and could not be erased.
    terminal.write(erase + `${((last - started) / 1000).toFixed(0)} s: ${text}`.slice(0, (terminal.columns || 80) - 1))
  }
  return {
    /** Shows what begins. */
    step,
    /** Shows how far a loop is, at most ten times a second. */
    tick: (text: string): void => {
      if (now() - last >= interval) step(text)
    },
    /** Removes the line. Call it before anything else is printed. */
    clear: (): void => {
      if (isShown) terminal.write(erase)
    }
  }
}

export const { clear, step, tick } = make(process.stderr, process.env)
process.on("exit", clear)
