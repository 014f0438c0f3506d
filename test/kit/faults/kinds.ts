/** The faults. After each, the gateway serves the next client, unless the fault ends it. */
import { once } from "node:events"
import { connect } from "node:net"
import * as Kit from "../gateway/gateway.ts"
import * as Raw from "../gateway/rawHttp.ts"
import * as Serving from "../gateway/serving.ts"
import type { Random } from "../random.ts"
import type { Attacked } from "./faults.ts"
import * as Faults from "./faults.ts"

export interface Size {
  readonly sessions: number
  readonly requests: number
  /** Number of requests that only `drainTimeout` ends. Leave it 0 unless that is short. */
  readonly endless?: number
}

export type Kind = (attacked: Attacked, random: Random, size: Size) => Promise<void>

const openMany = (url: string, count: number): Promise<ReadonlyArray<string>> =>
  Promise.all(Array.from({ length: count }, () => Kit.open(url)))

const endMany = (url: string, sessions: ReadonlyArray<string>) =>
  Promise.all(sessions.map((session) => Faults.end(url, session)))

/** Kills the processes of half of the sessions during their requests. The others go on. */
export const killedBackEnds: Kind = async (attacked, random, { requests, sessions }) => {
  const url = attacked.at("good")
  const all = await openMany(url, sessions)
  const pids = await Promise.all(all.map((session) => Kit.pidOf(url, session)))
  Faults.look(attacked)
  await Promise.all(all.map((session, i) => {
    // Every second one dies.
    const dies = i % 2 === 0 ? 1 + random.below(requests) : Number.POSITIVE_INFINITY
    const delay = random.below(4)
    let killed = false
    const before = (round: number) => {
      if (round < dies || killed) return
      killed = true
      setTimeout(() => Kit.kill(pids[i] ?? 0, "SIGKILL"), delay)
    }
    return Faults.talk(attacked, { url, session, requests, before, mayFail: () => killed })
  }))
  await Faults.serves(attacked)
  await endMany(url, all)
}

/** Uses back ends that write garbage, answer twice, do not read, ignore signals, do not start, or do not exist. */
export const badBackEnds: Kind = async (attacked, random, { requests }) => {
  const handles = await Faults.steadyHandles(attacked)
  const fine = ["good", "noisy", "stubborn"].map(async (backend) => {
    const url = attacked.at(backend)
    const session = await Kit.open(url)
    await Faults.talk(attacked, { url, session, requests })
    Faults.look(attacked)
    const pids: ReadonlyArray<number> = JSON.parse(await Kit.toolText(url, session, "pids"))
    const status = await Faults.end(url, session)
    // The answer comes after the end of the process.
    const isGone = !pids.some((pid) => pid > 0 && Kit.alive(pid))
    Faults.check(attacked, status === 204 && isGone, `${backend}: DELETE gave ${status}`)
  })
  const notStarting = ["failing", "missing"].map(async (backend) => {
    for (let i = 0; i < 5; i++) {
      const response = await Kit.initialize(attacked.at(backend))
      const { error } = await response.json()
      // The answer of a back end in its cool-down has no reason.
      const told = response.status === 502 ? /exit code 3|could not be started|no-such-command/ : /times in a row/
      const right = [502, 503].includes(response.status) && told.test(error.message)
      Faults.check(attacked, right, `${backend}: ${response.status} ${JSON.stringify(error)}`)
    }
  })
  const deaf = async () => {
    const url = attacked.at("good")
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "deaf")
    const filler = "x".repeat(50_000 + random.below(100_000))
    const bodies = Array.from({ length: 40 }, (_, i) => Kit.toolCall(i, "count", { filler }))
    const answers = await Promise.all(bodies.map((body) => Faults.ask(attacked, url, session, body)))
    for (const answer of answers) {
      const right = answer?.status === 404 || /has not read its stdin/.test(answer?.error ?? "")
      Faults.check(attacked, right, `deaf: ${JSON.stringify(answer)}`)
    }
  }
  await Promise.all([...fine, ...notStarting, deaf()])
  await Faults.atRest(attacked, handles)
  await Faults.serves(attacked)
}

/** The bytes of a request. */
const exchange = (url: string, session: string, body: string): Buffer => {
  const { host, pathname } = new URL(url)
  const length = { "content-length": String(Buffer.byteLength(body)) }
  const headers = { host, ...Kit.headers, ...length, ...(session === "" ? {} : { "mcp-session-id": session }) }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
  return Buffer.from([`POST ${pathname} HTTP/1.1`, ...lines, "", body].join("\r\n"))
}

const portOf = ({ origin }: Attacked): number => Number(new URL(origin).port)

/** Cuts connections after every byte of a request. Only whole requests may reach the server. */
export const cutRequests: Kind = async (attacked, random) => {
  const url = attacked.at("good")
  const session = await Kit.open(url)
  const handles = await Faults.steadyHandles(attacked)
  const whole = exchange(url, session, Kit.toolCall("cut", "count")).length
  for (let length = 0; length <= whole; length++) {
    const socket = connect(portOf(attacked), "127.0.0.1").on("error", () => undefined)
    const closed = once(socket, "close")
    const reset = random.chance(0.5)
    const part = exchange(url, session, Kit.toolCall("cut", "count")).subarray(0, length)
    socket.write(part, () => reset ? socket.resetAndDestroy() : socket.destroy())
    await closed
  }
  await Faults.atRest(attacked, handles)
  const count = Number(await Kit.toolText(url, session, "count"))
  Faults.check(attacked, count === 1 || count === 2, `${count - 1} of the cut requests were heard`)
  await Faults.end(url, session)
}

/** Cuts connections after some events of a response. Resuming delivers the rest, each message once and the answer last. */
export const cutResponses: Kind = async (attacked, random, { requests, sessions }) => {
  const url = attacked.at("good")
  const session = await Kit.open(url)
  const handles = await Faults.steadyHandles(attacked)
  const one = async (id: string) => {
    const count = 1 + random.below(4)
    const response = await Kit.post(url, session, Kit.toolCall(id, "steps", { count: 4, every: 3 }))
    const events = [...await Serving.firstEvents(response, count)]
    const resumed = await Kit.listen(url, session, { "last-event-id": String(events.at(-1)?.id) })
    await Kit.readEvents(resumed, (event) => events.push(event) > 0 && event.data.includes(`"id":"${id}"`))
    const messages = events.filter(({ data }) => data !== "").map(({ data }) => JSON.parse(data))
    const got = messages.map(({ id, params }) => params?.progress ?? id).join()
    Faults.check(attacked, got === `1,2,3,4,${id}`, `cut after ${count} events, resumed: ${got}`)
  }
  await Promise.all(Array.from({ length: sessions }, async (_, i) => {
    for (let round = 0; round < requests; round++) await one(`cut ${i} ${round}`)
  }))
  await Faults.atRest(attacked, handles)
  await Faults.end(url, session)
}

/** Disconnects clients at random times of requests and streams. */
export const vanishingClients: Kind = async (attacked, random, { requests, sessions }) => {
  const url = attacked.at("good")
  const all = await openMany(url, sessions)
  const handles = await Faults.steadyHandles(attacked)
  await Promise.all(all.flatMap((session, i) =>
    Array.from({ length: requests }, async (_, round) => {
      const gone = new AbortController()
      const tool = random.pick(["slow", "steps", "count", "listen"])
      const body = Kit.toolCall(`${tool} ${round}`, tool, { count: 20, every: 10 })
      const asked = tool === "listen"
        ? Kit.listen(url, session, {}, gone.signal)
        : Kit.post(url, session, body, {}, gone.signal)
      const delay = random.below(60)
      const done = asked.then((response) => response.text()).catch(() => undefined)
      // A random moment.
      await new Promise((resolve) => setTimeout(resolve, delay + i))
      gone.abort()
      await done
    })
  ))
  await Faults.atRest(attacked, handles)
  await Faults.serves(attacked)
  await endMany(url, all)
}

/** Uses up all file descriptors, so that no process and no connection can start, and then frees them. */
export const noDescriptors = async (attacked: Attacked, descriptors: number): Promise<void> => {
  const { origin } = attacked
  const check = (condition: unknown, failure: string) =>
    Faults.check(attacked, condition, `without descriptors ${failure}`)
  const url = attacked.at("good")
  let kept = await Raw.open(portOf(attacked))
  // The first session opens handles that stay.
  await Faults.serves(attacked)
  const handles = await Faults.steadyHandles(attacked)
  const get = (path: string) => kept.exchange([Buffer.from(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`)])
  const post = (session: string, body: string) => kept.exchange([exchange(url, session, body)])
  /** Opens sessions until one is refused. */
  const fill = async () => {
    const sessions: Array<string> = []
    let response = await post("", Kit.initializeBody)
    for (; response?.status === 200; response = await post("", Kit.initializeBody)) {
      sessions.push(response.headers.get("mcp-session-id") ?? "")
    }
    const clear = response?.status === 503 && response.headers.has("retry-after") && response.body.includes("EMFILE")
    check(clear, `initialize is answered ${response?.status} ${response?.body}`)
    return sessions
  }
  const sessions = await fill()
  Faults.look(attacked)
  const before = Faults.descriptors(attacked)
  const idle = Array.from({ length: descriptors }, () => connect(portOf(attacked), "127.0.0.1").on("error", () => {}))
  await Kit.eventually("no descriptor is left", () => Faults.descriptors(attacked) >= descriptors - 1)
  const used = Faults.cpu(attacked)
  await new Promise((resolve) => setTimeout(resolve, 500))
  // Connections that it cannot accept must not cause a busy loop.
  const share = (Faults.cpu(attacked) - used) / 50
  check(share <= 0.5, `the gateway uses ${share * 100} % of a CPU`)
  for (const path of ["/health", "/", "/sessions", "/metrics"]) {
    const response = await get(path)
    check(response?.status === 200, `${path} is ${response?.status} ${response?.body}`)
  }
  const [session = ""] = sessions
  const called = await post(session, Kit.toolCall(1, "count"))
  const isServed = called?.status === 200 && called.body.includes("\"1\"")
  check(isServed, `a session is answered ${called?.status} ${called?.body}`)
  for (const socket of idle) socket.destroy()
  await Kit.eventually("the connections are gone", () => Faults.descriptors(attacked) <= before)
  await Kit.eventually("a new one is served", () => fetch(`${origin}/health`).then(({ ok }) => ok, () => false))
  // One by one, because the sessions still use nearly all descriptors.
  for (const session of sessions) await Faults.end(url, session)
  await Faults.serves(attacked)
  // One less than before is fine, for a connection.
  // The connection may have been idle for longer than its keep-alive time-out.
  kept.socket.destroy()
  kept = await Raw.open(portOf(attacked))
  const again = await fill()
  check(again.length >= sessions.length - 1, `${again.length} sessions after ${sessions.length}`)
  for (const session of again) await Faults.end(url, session)
  // Node loses up to three handles when a spawn fails halfway, and two did.
  await Faults.atRest(attacked, handles + 6)
  kept.socket.destroy()
}

/** Stops the gateway by SIGTERM under load. Running requests are answered or fail with the reason, and later ones are refused. */
export const drained: Kind = async (attacked, random, { endless = 0, requests, sessions }) => {
  const url = attacked.at("good")
  const all = await openMany(url, sessions)
  Faults.look(attacked)
  let draining = false
  const mayFail = () => draining
  const talks = all.map((session) =>
    Faults.talk(attacked, { url, session, requests: 10_000, mayFail, mayCut: mayFail })
  )
  const pids = await Promise.all(all.map((session) => Kit.pidOf(url, session)))
  // Sent before the signal, so each of them must be answered: by its process, or by the end of the gateway.
  const held = all.map((session) => Faults.ask(attacked, url, session, Kit.toolCall("held", "untilSignal")))
  const never = all.slice(0, endless).map((session) =>
    Faults.ask(attacked, url, session, Kit.toolCall("never", "never"))
  )
  const count = held.length + never.length
  await Kit.eventually("all of them run", async () => (await Kit.inFlight(attacked.origin)) >= count)
  const rounds = attacked.tally.answered + random.below(requests)
  await Kit.eventually("the load goes on", () => attacked.tally.answered >= rounds)
  draining = true
  attacked.run.child.kill("SIGTERM")
  await Kit.eventually("the signal has arrived", () => attacked.run.output().includes("Stopping"))
  for (const pid of pids) Kit.kill(pid, "SIGUSR2")
  for (const answer of await Promise.all(held)) {
    Faults.check(attacked, answer?.text === "released", `a running request was answered ${JSON.stringify(answer)}`)
  }
  for (const answer of await Promise.all(never)) {
    Faults.check(attacked, answer?.error !== undefined, `an endless request was answered ${JSON.stringify(answer)}`)
  }
  await Promise.all(talks)
  const code = await attacked.run.exit
  Faults.check(attacked, code === 0, `the drained gateway ended with ${code}`)
  await Faults.ended(attacked)
}

/** Kills the gateway under load. Processes that obey the end of their stdin must end. */
export const killed: Kind = async (attacked, random, { requests, sessions }) => {
  const url = attacked.at("good")
  const all = await openMany(url, sessions)
  Faults.look(attacked)
  let dead = false
  const mayCut = () => dead
  const talks = all.map((session) => Faults.talk(attacked, { url, session, requests: 10_000, mayCut }))
  const rounds = 1 + random.below(requests)
  await Kit.eventually("the load goes on", () => attacked.tally.answered >= rounds)
  dead = true
  attacked.run.child.kill("SIGKILL")
  await Promise.all(talks)
  await attacked.run.exit
  await Faults.noProcessLeft(attacked)
}
