/** What replicas cost each other while no request goes from one to the other: open connections, and pings on them. */
import { Context, Effect, Layer } from "effect"
import { MessageStorage, RunnerAddress, Runners, ShardingConfig } from "effect/cluster"
import { RpcSerialization } from "effect/rpc"
import { TestClock } from "effect/testing"
import * as Links from "../../../src/gateway/cluster/Links.ts"
import * as ReplicaTls from "../../../src/gateway/cluster/ReplicaTls.ts"
import { liveHeap } from "../heap.ts"
import * as Counting from "./counting.ts"
import type { Database } from "./database.ts"

export interface Figures {
  /** CPU of a ping and its answer, at both ends together. */
  readonly pingMicros: number
  /** Memory of a connection, at both ends together: of the engine's; those of `Links` are made alike. */
  readonly connectionBytes: number
}

/** Ever other names of this machine, so that each gets a connection of its own: 0x7f000001 is 127.0.0.1. */
const address = (i: number, port: number) => RunnerAddress.make(`0x${"0".repeat(i)}7f000001`, port)

/** With so many connections to a replica in this process. */
export const measure = (database: Database, connections = 100, rounds = 30) =>
  Effect.scoped(Effect.gen(function*() {
    yield* TestClock.setTime(Date.now())
    const [replica] = yield* Counting.replicas(database, 1)
    yield* Counting.pass(database, 10)
    const services = yield* Layer.build(Runners.layerRpc.pipe(
      Layer.provide(Links.layerEngine(ReplicaTls.keyOf(Counting.stateKey))),
      Layer.provide([
        MessageStorage.layerNoop,
        RpcSerialization.layerSchemaBinary({ maxFrameSize: "unbounded" }),
        ShardingConfig.layer()
      ])
    ))
    const { ping } = Context.get(services, Runners.Runners)
    const pingAll = (first: number, count: number) =>
      Effect.forEach(Array.from({ length: count }, (_, i) => address(first + i, replica?.port ?? 0)), ping, {
        discard: true,
        concurrency: 10
      })
    // What is made once is not counted.
    yield* pingAll(0, 10)
    const before = liveHeap()
    yield* pingAll(10, connections)
    const connectionBytes = (liveHeap() - before) / connections
    yield* pingAll(10, connections)
    const cpu = process.cpuUsage()
    yield* Effect.repeat(pingAll(10, connections), { times: rounds - 1 })
    const { system, user } = process.cpuUsage(cpu)
    const figures: Figures = { pingMicros: (system + user) / (connections * rounds), connectionBytes }
    return figures
  })).pipe(Effect.provide(TestClock.layer({ warningDelay: "1 hour" })))
