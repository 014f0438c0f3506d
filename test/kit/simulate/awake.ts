/** What a session that is awake costs its replica: a gateway with `--cluster` as a process of its own, asked from outside. */
import { Effect, Redacted } from "effect"
import { readdirSync } from "node:fs"
import { backend } from "../cluster/counting.ts"
import { stablePort } from "../cluster/ports.ts"
import * as Kit from "../gateway/gateway.ts"
import { inspect } from "../heap.ts"
import type { Database } from "./database.ts"

export interface Figures {
  /** Alive in the heap of a replica without sessions. */
  readonly baseBytes: number
  readonly baseFiles: number
  /** More with each session that is awake; its back end's own memory is not in it. */
  readonly sessionBytes: number
  readonly sessionFiles: number
}

/** With so many sessions, a shell each. */
export const measure = (database: Database, sessions = 100) =>
  Effect.scoped(Effect.gen(function*() {
    const gateway = yield* Effect.acquireRelease(start(database), (gateway) =>
      Effect.promise(async () => {
        gateway.child.kill("SIGTERM")
        await gateway.exit
      }))
    yield* Effect.promise(() => Kit.eventually("the gateway is up", () => gateway.output().includes("Stop it with")))
    const url = /http:\S+/.exec(gateway.output())?.[0] ?? ""
    yield* Effect.promise(() =>
      Kit.eventually("the replica is ready", async () => (await fetch(new URL("/ready", url))).status === 200, 60)
    )
    const files = () => readdirSync(`/proc/${gateway.child.pid}/fd`).length
    const inspector = yield* Effect.acquireRelease(
      Effect.promise(() => inspect(gateway.output())),
      (inspector) => Effect.sync(() => inspector.close())
    )
    const open = (count: number) =>
      Effect.forEach(Array.from({ length: count }), () => Effect.promise(() => Kit.open(url)), {
        concurrency: 5
      })
    yield* open(20)
    const [few, fewFiles] = [yield* Effect.promise(inspector.liveHeap), files()]
    yield* open(sessions)
    const [many, manyFiles] = [yield* Effect.promise(inspector.liveHeap), files()]
    const [sessionBytes, sessionFiles] = [(many - few) / sessions, Math.round((manyFiles - fewFiles) / sessions)]
    const figures: Figures = {
      sessionBytes,
      sessionFiles,
      baseBytes: few - 20 * sessionBytes,
      baseFiles: fewFiles - 20 * sessionFiles
    }
    return figures
  }))

const start = (database: Database) =>
  Effect.promise(async () => {
    const [port, told] = [await stablePort(), await stablePort()]
    const cluster = ["--cluster", "--replica-address", `127.0.0.1:${told}`, "--leave-delay", "0 seconds"]
    const { args, command } = backend()
    return Kit.run(["--port", `${port}`, ...cluster, "--stateless", "--", command, ...args], {
      NODE_OPTIONS: "--inspect=127.0.0.1:0",
      DATABASE_URL: Redacted.value(database.url),
      GATEWAY_STATE_KEY: "the same on every replica of these"
    })
  })
