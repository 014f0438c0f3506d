/** Between a client and PostgreSQL: keeps back what one connection sends, so that a statement arrives after it was given up. */
import { Effect } from "effect"
import { connect, createServer } from "node:net"

export interface Holding {
  /** The database's URL by way of it. */
  readonly url: string
  /** The next connection on which a text is sent keeps back that and all that follows, also when its client closes it. */
  readonly holdFrom: (text: string) => void
  /** How many connections keep something back. */
  readonly held: () => number
  /** Sends on what was kept back, of whose answers the client hears nothing, and waits until the database has answered the last of it by closing the connection. */
  readonly release: Effect.Effect<void>
}

export const make = Effect.fnUntraced(function*(url: string) {
  const target = Number(new URL(url).port)
  let holdFrom: string | undefined
  const held: Array<() => Promise<void>> = []
  const server = createServer({ allowHalfOpen: true }, (near) => {
    const far = connect({ port: target, host: "127.0.0.1", allowHalfOpen: true })
    const closed = new Promise<void>((resolve) => far.once("close", resolve))
    let kept: Array<Buffer> | undefined
    near.on("data", (data) => {
      if (holdFrom !== undefined && data.includes(holdFrom)) {
        holdFrom = undefined
        const all: Array<Buffer> = []
        kept = all
        held.push(() => {
          kept = undefined
          // The client may still wait for its cancellation, and must get no answer.
          near.destroy()
          for (const each of all) far.write(each)
          // PostgreSQL reads all of it before it sees the end.
          far.end()
          return closed
        })
      }
      if (kept === undefined) far.write(data)
      else kept.push(data)
    })
    const end = () => kept === undefined && far.end()
    near.on("end", end).on("close", end).on("error", end)
    far.on("data", (data) => near.writable && near.write(data)).on("end", () => near.end()).on(
      "error",
      () => near.destroy()
    )
  })
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => {
      server.listen(0, "127.0.0.1", () => resume(Effect.void))
    }),
    () => Effect.sync(() => server.close())
  )
  const address = server.address()
  const port = typeof address === "object" && address !== null ? address.port : 0
  const holding: Holding = {
    url: url.replace(/:\d+\//, `:${port}/`),
    holdFrom: (text) => {
      holdFrom = text
    },
    held: () => held.length,
    release: Effect.promise(async () => {
      await Promise.all(held.splice(0).map((send) => send()))
    })
  }
  return holding
})
