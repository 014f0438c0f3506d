/**
 * The gateway's command under fault injection, and clients that check every answer. `kinds.ts` has the faults. `faults.test.ts`
 * injects each once, and `npm run faults` injects them at random by a seed.
 */
import { readdirSync, readFileSync } from "node:fs"
import * as Kit from "../gateway/gateway.ts"
import * as Serving from "../gateway/serving.ts"

/** Counts of requests by their outcome. */
export interface Tally {
  answered: number
  /** Answered with an error: the process died, or a time-out. */
  failed: number
  /** Refused before they began: unknown session, at capacity, shutting down. */
  refused: number
  /** The fault cut the connection. */
  cut: number
}

export interface Attacked {
  readonly run: Kit.Run
  readonly origin: string
  readonly pid: number
  /** The broken promises. */
  readonly failures: Array<string>
  readonly tally: Tally
  readonly at: (backend: string) => string
  /** The processes of back ends that `look` has found. */
  readonly seen: Set<number>
}

const backends = {
  good: Kit.counter(),
  noisy: Kit.counter("--noise"),
  // Without spares, because only its gateway ends such a process.
  stubborn: { ...Kit.counter("--stubborn", "--grandchild"), spares: 0 },
  failing: Kit.counter("--fail-start"),
  missing: { command: "no-such-command" }
}

/** Starts the command with back ends of every kind. It can open at most `descriptors` files and sockets. */
export const start = async (args: ReadonlyArray<string> = [], descriptors?: number): Promise<Attacked> => {
  const flags = ["--close-grace", "100 millis", "--write-timeout", "500 millis"]
    // Otherwise idle connections would count as leaked handles.
    .concat(["--keep-alive-timeout", "1 second", ...args])
  const run = await Kit.runServers(backends, flags, {}, descriptors)
  const { origin } = new URL(run.url)
  return {
    run,
    origin,
    pid: run.child.pid ?? 0,
    failures: [],
    tally: { answered: 0, failed: 0, refused: 0, cut: 0 },
    at: (backend) => `${origin}/mcp/${backend}`,
    seen: new Set()
  }
}

/** Records a failure unless the condition holds. */
export const check = ({ failures }: Attacked, condition: unknown, failure: string): void => {
  if (!condition) failures.push(failure)
}

/** Records the processes that run now. */
export const look = ({ pid, seen }: Attacked): void => {
  for (const child of Kit.descendants(pid)) seen.add(child)
}

export const descriptors = ({ pid }: Attacked): number => readdirSync(`/proc/${pid}/fd`).length

/** Descriptors without the three pipes of each child, because a spare may start at any time. */
const handles = (attacked: Attacked): number => descriptors(attacked) - 3 * Kit.children(attacked.pid).length

/** Counts handles while no process starts or ends. An ending child may have closed its pipes but still count as a child. */
export const steadyHandles = async (attacked: Attacked): Promise<number> => {
  let [steady, before] = [-1, -1]
  await Kit.eventually("processes and connections are steady", async () => {
    const { backends, sessions } = await Serving.overview(attacked.origin)
    const shown = backends.reduce((sum: number, { spares }: { spares: number }) => sum + spares, sessions.length)
    before = steady
    steady = handles(attacked)
    return Kit.children(attacked.pid).length === shown && steady === before
  })
  return steady
}

/** Hundredths of a second of CPU that the gateway itself has used. */
export const cpu = ({ pid }: Attacked): number => {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? []
  return Number(fields[11]) + Number(fields[12])
}

/** Stops the gateway by a signal, and waits until no process is left. */
export const stop = async (attacked: Attacked, signal: NodeJS.Signals = "SIGTERM"): Promise<void> => {
  look(attacked)
  attacked.run.child.kill(signal)
  await attacked.run.exit
  await ended(attacked)
}

/** Checks that a gateway that has ended has logged no fault and left no process. */
export const ended = async (attacked: Attacked): Promise<void> => {
  await noProcessLeft(attacked)
  const wrong = Kit.wrongIn(attacked.run.output())
  check(attacked, wrong === undefined, `the gateway has logged: ${wrong}`)
}

export const noProcessLeft = ({ failures, seen }: Attacked): Promise<void> =>
  Kit.eventually("no process is left", () => ![...seen].some(Kit.alive)).catch(() => {
    failures.push(`processes are left: ${[...seen].filter(Kit.alive).join()}`)
  })

/** Waits until no session has requests or streams, and no more handles are open than before. */
export const atRest = async (attacked: Attacked, handlesBefore: number): Promise<void> => {
  let state = ""
  const resting = async () => {
    const { sessions } = await Serving.overview(attacked.origin)
    const busy = sessions.filter((each: { inFlight: number; streams: number }) => each.inFlight + each.streams > 0)
    state = `${busy.length} sessions busy, ${handles(attacked)} handles, ${handlesBefore} before`
    return busy.length === 0 && handles(attacked) <= handlesBefore
  }
  await Kit.eventually("the gateway is at rest", resting).catch(() => attacked.failures.push(`not at rest: ${state}`))
}

/** Checks that a new client is served. */
export const serves = async (attacked: Attacked): Promise<void> => {
  const url = attacked.at("good")
  const session = await Kit.open(url)
  const count = await Kit.toolText(url, session, "count").catch(String)
  check(attacked, count === "1", `the next client was not served: ${count}`)
  await end(url, session)
}

export const end = async (url: string, session: string): Promise<number> => (await Serving.remove(url, session)).status

// -----------------------------------------------------------------------------
// Requests, each with exactly one answer
// -----------------------------------------------------------------------------

interface Answer {
  readonly status: number
  /** The text of the tool's result. */
  readonly text: string | undefined
  readonly error: string | undefined
}

/**
 * Sends one request, and checks that it gets one answer: a result, or an error with a message. Returns `undefined` if the
 * connection was cut, which only `mayCut` allows.
 */
export const ask = async (
  attacked: Attacked,
  url: string,
  session: string,
  body: string,
  mayCut: () => boolean = () => false
): Promise<Answer | undefined> => {
  const { id } = JSON.parse(body)
  const { tally } = attacked
  try {
    const response = await Kit.post(url, session, body)
    const text = await response.text()
    const messages = text.startsWith("{") ? [JSON.parse(text)] : Serving.messagesIn(text)
    const [answer, ...more] = messages.filter(({ error, result }) => error !== undefined || result !== undefined)
    if (answer === undefined) throw new Error(`no answer in a response with status ${response.status}`)
    check(attacked, more.length === 0, `${more.length + 1} answers to ${id}`)
    check(attacked, answer.id === id, `an answer to ${JSON.stringify(answer.id)} came to ${id}`)
    check(attacked, answer.result !== undefined || answer.error?.message, `an error without a message to ${id}`)
    if (answer.result !== undefined) tally.answered++
    else if (response.status === 200) tally.failed++
    else tally.refused++
    return { status: response.status, text: answer.result?.content?.[0]?.text, error: answer.error?.message }
  } catch (error) {
    if (mayCut()) tally.cut++
    else check(attacked, false, `no answer to ${id} of ${url}: ${String(error)} ${String(Object(error).cause ?? "")}`)
    return undefined
  }
}

export interface Talk {
  readonly url: string
  readonly session: string
  readonly requests: number
  /** Called before each round. */
  readonly before?: (round: number) => void
  /** True once its process, and so its session, may have ended. */
  readonly mayFail?: () => boolean
  readonly mayCut?: () => boolean
}

/** Runs a client that uses the same request ids as all others, and checks that each answer is its own. Ends with its session. */
export const talk = async (attacked: Attacked, options: Talk): Promise<void> => {
  const { before, mayCut, mayFail = () => false, requests, session, url } = options
  for (let round = 1; round <= requests; round++) {
    before?.(round)
    const [count, raw] = await Promise.all([
      ask(attacked, url, session, Kit.toolCall(round, "count"), mayCut),
      ask(attacked, url, session, Kit.toolCall(`raw ${round}`, "raw", { mark: session }), mayCut)
    ])
    if (count === undefined || raw === undefined) return
    const isNext = count.text === undefined || count.text === String(round)
    check(attacked, isNext, `the count ${count.text}, not ${round}, in ${url}`)
    check(attacked, raw.text?.includes(session) !== false, `another session's answer: ${raw.text}`)
    if (count.text === undefined || raw.text === undefined) {
      const reason = `${count.error ?? ""} ${raw.error ?? ""}`
      return check(attacked, mayFail(), `refused without a fault: ${reason} (${count.status}, ${raw.status})`)
    }
  }
}
