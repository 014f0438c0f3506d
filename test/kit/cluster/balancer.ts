/** A load balancer for tests, as plain as one can be: nothing sticks, so a session's requests reach any replica. */
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import { Agent, createServer, request } from "node:http"
import { portOf } from "../gateway/gateway.ts"
import type { Random } from "../random.ts"

/** On a response that is the balancer's own: no replica could be reached, or one broke off before it answered. */
export const balancerError = "x-balancer-error"

export interface Balancer {
  readonly origin: string
  /** The replicas that get requests now. */
  readonly inRotation: () => ReadonlyArray<string>
  /** Requests that each replica got. */
  readonly requests: ReadonlyMap<string, number>
  readonly stop: () => Promise<void>
}

export interface Options {
  /** Picks a replica for each request; without, they have turns. */
  readonly random?: Random
  /** Keep connections to the replicas, for load; a replica that stops may close one just as it is taken. */
  readonly reuse?: boolean
}

/** How often each replica is asked whether it is ready, and how long that may take. */
const interval = 250
const patience = 1000

/**
 * Starts one before some origins. A replica whose `/ready` is not 200 gets nothing; one that refuses the connection hands the
 * request on to the next. Nothing else is tried twice, and each request has a connection of its own unless they are to be
 * reused. One function: a request and its next try share what is open.
 */
export const start = async (
  origins: ReadonlyArray<string>,
  { random, reuse = false }: Options = {}
): Promise<Balancer> => {
  const agent = reuse && new Agent({ keepAlive: true })
  const ready = new Map(origins.map((origin) => [origin, false]))
  const requests = new Map(origins.map((origin) => [origin, 0]))
  const poll = async (origin: string) => {
    const answer = await fetch(`${origin}/ready`, { signal: AbortSignal.timeout(patience) }).then(
      async (response) => {
        await response.text()
        return response.ok
      },
      () => false
    )
    ready.set(origin, answer)
  }
  const polling = new Set<string>()
  const pollAll = () =>
    Promise.all(
      origins.filter((origin) => !polling.has(origin)).map(async (origin) => {
        polling.add(origin)
        await poll(origin)
        polling.delete(origin)
      })
    )
  await pollAll()
  const timer = setInterval(pollAll, interval)

  const inRotation = () => origins.filter((origin) => ready.get(origin) === true)
  let turn = 0
  /** All that may get a request, in the order in which they are tried. */
  const order = (): ReadonlyArray<string> => {
    const all = inRotation()
    const first = random === undefined ? turn++ % Math.max(1, all.length) : random.below(Math.max(1, all.length))
    return [...all.slice(first), ...all.slice(0, first)]
  }

  const forward = (incoming: IncomingMessage, outgoing: ServerResponse, candidates: ReadonlyArray<string>): void => {
    const [origin, ...others] = candidates
    if (origin === undefined) {
      outgoing.writeHead(503, { [balancerError]: "no replica is ready", "retry-after": "1" }).end()
      return
    }
    let connected = false
    const upstream = request(origin + incoming.url, {
      method: incoming.method ?? "GET",
      headers: { ...incoming.headers, connection: reuse ? "keep-alive" : "close" },
      agent
    })
    // Nothing of the body is taken before the connection is there: the next replica must get all of it.
    upstream.once("socket", (socket) => {
      const begin = () => {
        connected = true
        requests.set(origin, (requests.get(origin) ?? 0) + 1)
        incoming.pipe(upstream)
      }
      if (socket.connecting) socket.setNoDelay(true).once("connect", begin)
      else begin()
    })
    upstream.once("response", (response) => {
      const headers = { ...response.headers }
      delete headers.connection
      outgoing.writeHead(response.statusCode ?? 502, headers)
      outgoing.flushHeaders()
      response.pipe(outgoing)
      response.once("error", () => outgoing.destroy())
      response.once("close", () => response.complete ? undefined : outgoing.destroy())
    })
    upstream.once("error", (error) => {
      if (!connected && !outgoing.destroyed) return forward(incoming, outgoing, others)
      if (outgoing.headersSent) return void outgoing.destroy()
      outgoing.writeHead(502, { [balancerError]: error.message.replace(/[^ -~]/g, " ") }).end()
    })
    outgoing.once("close", () => upstream.destroy())
  }

  const server: Server = createServer({ keepAliveTimeout: 60_000, noDelay: true }, (incoming, outgoing) => {
    forward(incoming, outgoing, order())
  })
  server.listen(0, "127.0.0.1")
  await new Promise((resolve) => server.once("listening", resolve))
  return {
    origin: `http://127.0.0.1:${portOf(server)}`,
    inRotation,
    requests,
    stop: async () => {
      clearInterval(timer)
      server.closeAllConnections()
      if (agent) agent.destroy()
      await new Promise((resolve) => server.close(resolve))
    }
  }
}
