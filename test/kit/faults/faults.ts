/**
 * A gateway in trouble: the command with real processes behind it, clients that keep count of every answer, and the faults
 * that are done to both. `test/gateway/faults.test.ts` does each once, `npm run faults` all of them again and again by a seed.
 */
import { readdirSync, readFileSync } from "node:fs"
import * as Kit from "../gateway/gateway.ts"
import * as Serving from "../gateway/serving.ts"

/** What became of requests. */
export interface Tally {
  answered: number
  /** Errors with a reason: of a process that died, of a time that is over. */
  failed: number
  /** Refused before they began: no such session, no room, shutting down. */
  refused: number
  /** The connection was cut by the fault itself. */
  cut: number
}

export interface Attacked {
  readonly run: Kit.Run
  readonly origin: string
  readonly pid: number
  /** Whatever broke a promise. */
  readonly failures: Array<string>
  readonly tally: Tally
  readonly at: (backend: string) => string
  /** Processes of back ends that were seen. */
  readonly seen: Set<number>
}

const backends = {
  good: Kit.counter(),
  noisy: Kit.counter("--noise"),
  // No spares: nothing but its gateway ends such a process.
  stubborn: { ...Kit.counter("--stubborn", "--grandchild"), spares: 0 },
  failing: Kit.counter("--fail-start"),
  missing: { command: "no-such-command" }
}

/** The command with back ends of every kind; `descriptors`: it may open no more files and sockets than that. */
export const start = async (args: ReadonlyArray<string> = [], descriptors?: number): Promise<Attacked> => {
  const flags = ["--close-grace", "100 millis", "--write-timeout", "500 millis"]
    // Connections that wait for a next request are no handles that are left.
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

/** Notes the processes that there are now. */
export const look = ({ pid, seen }: Attacked): void => {
  for (const child of Kit.descendants(pid)) seen.add(child)
}

export const descriptors = ({ pid }: Attacked): number => readdirSync(`/proc/${pid}/fd`).length

/** Descriptors but for the three pipes of each child: a spare may be started anew at any time. */
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

/** Ends the gateway in order, and waits until none of the processes is left. */
export const stop = async (attacked: Attacked, signal: NodeJS.Signals = "SIGTERM"): Promise<void> => {
  look(attacked)
  attacked.run.child.kill(signal)
  await attacked.run.exit
  await nobodyLeft(attacked)
  nothingWrongLogged(attacked)
}

export const nothingWrongLogged = ({ failures, run }: Attacked): void => {
  const wrong = Kit.wrongIn(run.output())
  if (wrong !== undefined) failures.push(`the gateway has logged: ${wrong}`)
}

export const nobodyLeft = ({ failures, seen }: Attacked): Promise<void> =>
  Kit.eventually("no process is left", () => ![...seen].some(Kit.alive)).catch(() => {
    failures.push(`processes are left: ${[...seen].filter(Kit.alive).join()}`)
  })

/** Waits until nothing runs in any session, and no more handles are open than there were. */
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

/** The next client is served: it opens a session, and counts to one. */
export const serves = async (attacked: Attacked): Promise<void> => {
  const url = attacked.at("good")
  const session = await Kit.open(url)
  const count = await Kit.toolText(url, session, "count").catch(String)
  if (count !== "1") attacked.failures.push(`the next client was not served: ${count}`)
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
 * Sends one request, and checks that one answer to it comes: a result, or an error with a message. `undefined`: the
 * connection was cut, which only `mayCut` allows.
 */
export const ask = async (
  { failures, tally }: Attacked,
  url: string,
  session: string,
  body: string,
  mayCut: () => boolean = () => false
): Promise<Answer | undefined> => {
  const { id } = JSON.parse(body)
  try {
    const response = await Kit.post(url, session, body)
    const text = await response.text()
    const messages: ReadonlyArray<Message> = text.startsWith("{") ? [JSON.parse(text)] : Serving.messagesIn(text)
    const [answer, ...more] = messages.filter(({ error, result }) => error !== undefined || result !== undefined)
    if (answer === undefined) throw new Error(`no answer in a response with status ${response.status}`)
    if (more.length > 0) failures.push(`${more.length + 1} answers to ${id}`)
    if (answer.id !== id) failures.push(`an answer to ${JSON.stringify(answer.id)} came to ${id}`)
    if (answer.result === undefined && !answer.error?.message) {
      failures.push(`an error without a message to ${id}`)
    }
    if (answer.result !== undefined) tally.answered++
    else if (response.status === 200) tally.failed++
    else tally.refused++
    return { status: response.status, text: answer.result?.content?.[0]?.text, error: answer.error?.message }
  } catch (error) {
    if (mayCut()) tally.cut++
    else failures.push(`no answer to ${id} of ${url}: ${String(error)} ${String(Object(error).cause ?? "")}`)
    return undefined
  }
}

interface Message {
  readonly id?: unknown
  readonly result?: { readonly content?: ReadonlyArray<{ readonly text: string }> }
  readonly error?: { readonly message: string }
}

export interface Talk {
  readonly url: string
  readonly session: string
  readonly requests: number
  /** Called before each round. */
  readonly before?: (round: number) => void
  /** Whether its process, and so its session, may be gone by now. */
  readonly mayFail?: () => boolean
  readonly mayCut?: () => boolean
}

/**
 * A client that sends the same ids as all others: the count that comes back is its own, and so is what it said. Ends when
 * its session has ended.
 */
export const talk = async (attacked: Attacked, options: Talk): Promise<void> => {
  const { before, mayCut, mayFail = () => false, requests, session, url } = options
  for (let round = 1; round <= requests; round++) {
    before?.(round)
    const [count, raw] = await Promise.all([
      ask(attacked, url, session, Kit.toolCall(round, "count"), mayCut),
      ask(attacked, url, session, Kit.toolCall(`raw ${round}`, "raw", { mark: session }), mayCut)
    ])
    if (count === undefined || raw === undefined) return
    if (count.text !== undefined && count.text !== String(round)) {
      attacked.failures.push(`the count ${count.text}, not ${round}, in ${url}`)
    }
    if (raw.text !== undefined && !raw.text.includes(session)) {
      attacked.failures.push(`another session's answer: ${raw.text}`)
    }
    if (count.text === undefined || raw.text === undefined) {
      const reason = `${count.error ?? ""} ${raw.error ?? ""}`
      if (!mayFail()) attacked.failures.push(`refused without a fault: ${reason} (${count.status}, ${raw.status})`)
      return
    }
  }
}
