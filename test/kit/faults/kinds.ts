/** The faults: each is done to a gateway under load, and leaves it serving the next client. */
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

/** SIGKILL for the processes of some sessions in the middle of their requests; the others do not notice. */
export const killedBackEnds: Kind = async (attacked, random, { requests, sessions }) => {
  const url = attacked.at("good")
  const all = await openMany(url, sessions)
  const pids = await Promise.all(all.map((session) => Kit.pidOf(url, session)))
  Faults.look(attacked)
  await Promise.all(all.map((session, i) => {
    // Every second one, so that there are always some of both.
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

/** Back ends that write garbage and answer twice, do not read, do not leave, do not start, or are not there. */
export const badBackEnds: Kind = async (attacked, random, { requests }) => {
  const { failures } = attacked
  const handles = await Faults.steadyHandles(attacked)
  const fine = ["good", "noisy", "stubborn"].map(async (backend) => {
    const url = attacked.at(backend)
    const session = await Kit.open(url)
    await Faults.talk(attacked, { url, session, requests })
    Faults.look(attacked)
    const pids: ReadonlyArray<number> = JSON.parse(await Kit.toolText(url, session, "pids"))
    const status = await Faults.end(url, session)
    // The answer comes when the process is gone, whether it wants to or not.
    if (status !== 204 || pids.some((pid) => pid > 0 && Kit.alive(pid))) {
      failures.push(`${backend}: DELETE gave ${status}`)
    }
  })
  const notStarting = ["failing", "missing"].map(async (backend) => {
    for (let i = 0; i < 5; i++) {
      const response = await Kit.initialize(attacked.at(backend))
      const { error } = await response.json()
      // The others of a back end that cools down are not told why.
      const told = response.status === 502 ? /exit code 3|could not be started|no-such-command/ : /times in a row/
      const right = [502, 503].includes(response.status) && told.test(error.message)
      if (!right) failures.push(`${backend}: ${response.status} ${JSON.stringify(error)}`)
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
      if (!right) failures.push(`deaf: ${JSON.stringify(answer)}`)
    }
  }
  await Promise.all([...fine, ...notStarting, deaf()])
  await Faults.atRest(attacked, handles)
  await Faults.serves(attacked)
}

/** A request as it stands on the wire. */
const exchange = (url: string, session: string, body: string): Buffer => {
  const { host, pathname } = new URL(url)
  const headers = {
    host,
    ...Kit.headers,
    ...(session === "" ? {} : { "mcp-session-id": session }),
    "content-length": String(Buffer.byteLength(body))
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
  return Buffer.from([`POST ${pathname} HTTP/1.1`, ...lines, "", body].join("\r\n"))
}

const portOf = ({ origin }: Attacked): number => Number(new URL(origin).port)

/** Connections cut after every byte of a request, by a reset or in order; at most the whole ones are heard. */
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
  if (count !== 1 && count !== 2) attacked.failures.push(`${count - 1} of the cut requests were heard`)
  await Faults.end(url, session)
}

/** Connections cut after some events of a response: resuming brings the rest, each message once, and the answer last. */
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
    if (got !== `1,2,3,4,${id}`) attacked.failures.push(`cut after ${count} events, resumed: ${got}`)
  }
  await Promise.all(Array.from({ length: sessions }, async (_, i) => {
    for (let round = 0; round < requests; round++) await one(`cut ${i} ${round}`)
  }))
  await Faults.atRest(attacked, handles)
  await Faults.end(url, session)
}

/** Clients that go at some moment of a request or of a stream, without a word. */
export const vanishingClients: Kind = async (attacked, random, { requests, sessions }) => {
  const url = attacked.at("good")
  const all = await openMany(url, sessions)
  const handles = await Faults.steadyHandles(attacked)
  await Promise.all(all.flatMap((session, i) =>
    Array.from({ length: requests }, async (_, round) => {
      const gone = new AbortController()
      const tool = random.pick(["slow", "steps", "count", "listen"])
      const asked = tool === "listen"
        ? Kit.listen(url, session, {}, gone.signal)
        : fetch(url, {
          method: "POST",
          headers: { ...Kit.headers, "mcp-session-id": session },
          body: Kit.toolCall(`${tool} ${round}`, tool, { count: 20, every: 10 }),
          signal: gone.signal
        })
      const delay = random.below(60)
      const done = asked.then((response) => response.text()).catch(() => undefined)
      // A moment, not a wait for something.
      await new Promise((resolve) => setTimeout(resolve, delay + i))
      gone.abort()
      await done
    })
  ))
  await Faults.atRest(attacked, handles)
  await Faults.serves(attacked)
  await endMany(url, all)
}

/** No file descriptors left, neither for processes nor for connections; and then again some. */
export const noDescriptors = async (attacked: Attacked, descriptors: number): Promise<void> => {
  const { failures, origin } = attacked
  const url = attacked.at("good")
  const kept = await Raw.open(portOf(attacked))
  // What is made once for all is made with the first session.
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
    if (!clear) failures.push(`without descriptors initialize is told ${response?.status} ${response?.body}`)
    return sessions
  }
  const sessions = await fill()
  Faults.look(attacked)
  const before = Faults.descriptors(attacked)
  const idle = Array.from(
    { length: descriptors },
    () => connect(portOf(attacked), "127.0.0.1").on("error", () => undefined)
  )
  await Kit.eventually("no descriptor is left", () => Faults.descriptors(attacked) >= descriptors - 1)
  const used = Faults.cpu(attacked)
  await new Promise((resolve) => setTimeout(resolve, 500))
  // Connections that cannot be accepted are no reason to spin.
  const share = (Faults.cpu(attacked) - used) / 50
  if (share > 0.5) failures.push(`without descriptors the gateway uses ${share * 100} % of a CPU`)
  for (const path of ["/health", "/", "/sessions", "/metrics"]) {
    const response = await get(path)
    if (response?.status !== 200) failures.push(`without descriptors ${path} is ${response?.status} ${response?.body}`)
  }
  const [session = ""] = sessions
  const called = await post(session, Kit.toolCall(1, "count"))
  if (called?.status !== 200 || !called.body.includes("\"1\"")) {
    failures.push(`a session is told ${called?.status} ${called?.body}`)
  }
  for (const socket of idle) socket.destroy()
  await Kit.eventually("the connections are gone", () => Faults.descriptors(attacked) <= before)
  await Kit.eventually("a new one is served", () => fetch(`${origin}/health`).then(({ ok }) => ok, () => false))
  // One after the other: the sessions still have nearly all descriptors.
  for (const session of sessions) await Faults.end(url, session)
  await Faults.serves(attacked)
  // As many as before, but for a connection.
  const again = await fill()
  if (again.length < sessions.length - 1) failures.push(`${again.length} sessions after ${sessions.length}`)
  for (const session of again) await Faults.end(url, session)
  // Node loses up to three handles when a spawn fails halfway, and two did.
  await Faults.atRest(attacked, handles + 6)
  kept.socket.destroy()
}

/** SIGTERM under load: what runs is answered or told why not; what comes later is refused. */
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
    if (answer?.text !== "released") attacked.failures.push(`a running request was told ${JSON.stringify(answer)}`)
  }
  for (const answer of await Promise.all(never)) {
    if (answer?.error === undefined) attacked.failures.push(`an endless request was told ${JSON.stringify(answer)}`)
  }
  await Promise.all(talks)
  const code = await attacked.run.exit
  // As every program that a signal has ended in order.
  if (code !== 0) attacked.failures.push(`the drained gateway ended with ${code}`)
  await Faults.nobodyLeft(attacked)
  Faults.nothingWrongLogged(attacked)
}

/** SIGKILL under load: no process that obeys the end of its stdin is left. */
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
  await Faults.nobodyLeft(attacked)
}
