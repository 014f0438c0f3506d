/** Messages of a stdio process: none is lost or out of order, and no message waits for a process that has exited. */
import { Clock, Deferred, Duration, Effect, Exit, Logger, Scope } from "effect"
import { afterEach, assert, beforeEach, describe, it } from "vitest"
import * as Bridge from "../../src/gateway/conversation/Bridge.ts"
import * as ClientRecord from "../../src/gateway/conversation/ClientRecord.ts"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import * as StdioProcess from "../../src/gateway/transports/StdioProcess.ts"
import type { Receiver, Transport } from "../../src/gateway/transports/Transport.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"
import * as Told from "../kit/gateway/told.ts"

describe("messages of a stdio process", () => {
  let scope: Scope.Closeable
  beforeEach(() => {
    scope = Scope.makeUnsafe()
  })
  afterEach(() => Effect.runPromise(Scope.close(scope, Exit.void)))

  const limits = {
    maxLineBytes: 1_000_000,
    writeTimeout: Duration.seconds(30),
    closeGrace: Duration.millis(100),
    stderrLevel: "debug" as const
  }
  const logged: Array<unknown> = []
  const logger = Logger.layer([Logger.make(({ message }) => void logged.push(message))])

  const launch = (command: string, ...args: ReadonlyArray<string>) =>
    StdioProcess.start({ command, args, env: {}, cwd: undefined }, process.env, limits, (text) => text).pipe(
      Scope.provide(scope),
      Effect.provide(logger)
    )
  const start = (command: string, ...args: ReadonlyArray<string>): Promise<Transport> =>
    Effect.runPromise(launch(command, ...args))
  /** Starts a process whose time-outs run on a virtual clock. */
  const startOnClock = async (...command: readonly [string, ...ReadonlyArray<string>]) => {
    const time = await StillClock.make()
    const transport = await Effect.runPromise(Effect.provideService(launch(...command), Clock.Clock, time))
    const close = () => time.passUntilSettled("it is closed", Effect.runPromise(Scope.close(scope, Exit.void)))
    return { transport, time, close }
  }
  const attach = (transport: Transport, receiver: Receiver) => Effect.runPromise(transport.attach(receiver))
  const end = async (transport: Transport) => (await Effect.runPromise(Deferred.await(transport.ended))).reason

  /** Makes `seq` print a response instead of each number. */
  const format = "{\"jsonrpc\":\"2.0\",\"id\":%.0f,\"result\":0}"
  const seq = (last: number) => `seq -f '${format}' 1 ${last}`
  const oneTo = (last: number) => Array.from({ length: last }, (_, i) => i + 1)
  /** A receiver that records the ids of responses. `hasRoom` gets the number of responses so far. */
  const receiver = (room: Effect.Effect<void>, hasRoom: (count: number) => boolean = () => true) => {
    const seen: Array<JsonRpc.Id> = []
    const receive: Receiver["receive"] = (message) => message._tag !== "Response" || hasRoom(seen.push(message.id))
    return { seen, receive, garbage: () => {}, room }
  }

  it("arrive in order before the news of the exit, also if the receiver has no room at times", async () => {
    // More than a chunk and less than the pipe holds, so the process exits while its lines wait.
    const { close, transport } = await startOnClock("seq", "-f", format, "1", "3000")
    const gone = Kit.eventually("it is gone", () => !Kit.alive(transport.pid ?? 0))
      // The exit event reaches the gateway a moment later.
      .then(() => new Promise((resolve) => setTimeout(resolve, 50)))
    const to = receiver(Effect.promise(() => gone), (count) => ![10, 11, 2000].includes(count))
    await attach(transport, to)
    assert.include(await end(transport), "exit code 0")
    await close()
    assert.deepStrictEqual(to.seen, oneTo(3000))
  })

  it("all reach a slow receiver before the news of the exit", async () => {
    const { close, time, transport } = await startOnClock("seq", "-f", format, "1", "10")
    const to = receiver(Effect.sleep("100 millis"), (count) => count % 2 === 0)
    await attach(transport, to)
    await Kit.eventually("it is gone", () => to.seen.length === 1 && !Kit.alive(transport.pid ?? 0))
    // The five waits together are longer than the gateway waits for a receiver without progress.
    assert.include(await time.passUntilSettled("it is told", end(transport)), "exit code 0")
    assert.lengthOf(to.seen, 10)
    await close()
  })

  it("do not delay the news of the exit when a child of the process writes without end", async () => {
    const { close, time, transport } = await startOnClock("sh", "-c", "(while :; do echo more; done) & exec seq 1 3")
    let said = Promise.withResolvers<void>()
    await attach(transport, { ...receiver(Effect.void), garbage: () => said.resolve() })
    const ended = end(transport)
    await Kit.eventually("it is gone", () => !Kit.alive(transport.pid ?? 0))
    const isTold = (): Promise<boolean> => {
      said = Promise.withResolvers()
      return Promise.race([ended.then(() => true), said.promise.then(() => false)])
    }
    // The child writes before each 20 ms step, so the gateway never finds its stdout quiet.
    while (!(await isTold())) await time.pass("20 millis")
    assert.include(await ended, "exit code 0")
    await close()
  })

  it("do not delay the news of the exit when the receiver never has room again, and later ones wait", async () => {
    const child = `(while kill -0 $$; do :; done; exec ${seq(100_000)}) 2>/dev/null & exec ${seq(10)}`
    const transport = await start("sh", "-c", child)
    const to = receiver(Effect.never, (count) => count < 5)
    await attach(transport, to)
    assert.include(await end(transport), "exit code 0")
    assert.deepStrictEqual(to.seen, oneTo(5))
  })

  for (const at of [1, 3]) {
    it(`fail their session when the receiver throws ${at === 1 ? "at once" : "after a wait"}`, async () => {
      const { close, time, transport } = await startOnClock("sh", "-c", `${seq(10)}; exec sleep 1000`)
      const to = receiver(Effect.sleep("10 millis"), (count) => {
        if (count === at) throw new Error("a defect of the receiver")
        return count !== 2
      })
      await attach(transport, to)
      const told = await time.passUntilSettled("it is told", end(transport))
      assert.strictEqual(told, "the gateway could not handle a line of the back end")
      assert.lengthOf(to.seen, at)
      assert.isTrue(logged.some((message) => String(message).includes("could not handle a line")))
      await close()
    })
  }

  it("end with the scope of the process while they wait for its stdin", async () => {
    const transport = await start("sleep", "1000")
    const message = JsonRpc.notification("notifications/x", { filler: "x".repeat(100_000) })
    const writes = Array.from({ length: 40 }, () => Effect.runFork(transport.send(message)))
    const waiting = () => writes.filter((fiber) => fiber.pollUnsafe() === undefined).length
    assert.isAbove(waiting(), 30)
    await Effect.runPromise(Scope.close(scope, Exit.void))
    assert.strictEqual(waiting(), 0)
    assert.isTrue(writes.every((fiber) => Exit.isSuccess(fiber.pollUnsafe() ?? Exit.fail("left"))))
  })

  it("do not wait any longer once the process has ended for the gateway, although it holds its stdin open", async () => {
    const { close, time, transport } = await startOnClock("sh", "-c", "exec >&-; exec sleep 1000")
    await attach(transport, receiver(Effect.void))
    let isSent = false
    const sent = Effect.runPromise(
      Effect.provideService(
        transport.send(JsonRpc.notification("notifications/x", { filler: "x".repeat(500_000) })),
        Clock.Clock,
        time
      )
    ).then(() => isSent = true)
    assert.include(await time.passUntilSettled("it is told", end(transport)), "closed its stdout")
    await new Promise((resolve) => setTimeout(resolve, 20))
    const wasSent = isSent
    await close()
    await sent
    assert.isTrue(wasSent)
  })

  it("all reach a slow client after the exit, progress in order and then the answer", async () => {
    const { args, command } = Kit.counter()
    const process = StdioProcess.start({ command, args, env: {}, cwd: undefined }, {}, limits, (text) => text)
    const record = ClientRecord.make(Told.requestOf(Kit.initializeBody))
    const bridge = await Effect.runPromise(
      Scope.provide(Bridge.make(process, record, Told.patient(20), Told.metrics), scope)
    )
    const { reply } = Told.request(bridge, 1, "lastWords", { count: 40, size: 3000 })
    const reader = await Effect.runPromise(reply)
    if (reader._tag !== "Events") return assert.fail("no stream")
    const seen: Array<string> = []
    const takeOnce = Effect.map(reader.take, (events) => {
      for (const { text } of events) {
        const { params, result } = JSON.parse(text)
        seen.push(params === undefined ? result?.content[0].text ?? text : String(params.progress))
      }
    })
    // The process exits while most of its messages wait in the pipe and in the gateway.
    await Kit.eventually("it is gone", () => !Kit.alive(bridge.activity().pid ?? 0))
    await Effect.runPromise(Effect.ignore(Effect.forever(Effect.andThen(takeOnce, Effect.sleep("5 millis")))))
    assert.deepStrictEqual(seen, [...Array.from({ length: 40 }, (_, i) => String(i + 1)), "last words"])
  })
})

describe("sessions with a process that stops reading", () => {
  it("end with the reason when the process closes its stdin and lives on", async () => {
    const script = "read l; exec 0<&-; echo '{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{}}'; exec sleep 1000"
    const clock = await StillClock.make()
    const backends = { closed: { command: "sh", args: ["-c", script] } }
    const { url } = await Serving.gateway({ backends, closeGrace: "100 millis" }, clock)
    const session = await Kit.open(url)
    const answer = Kit.post(url, session, Kit.toolCall(1, "count"))
    const { error, id } = await (await clock.passUntilSettled("it is told", answer)).json()
    assert.deepStrictEqual([id, error.message], [1, "the back end has closed its stdin"])
    assert.strictEqual(await Serving.statusOf(url, session, Kit.toolCall(2, "count")), 404)
  })

  it("send waiting messages once and in order when the process reads again", async () => {
    const { origin, url } = await Serving.gateway({ backends: { counter: Kit.counter() } })
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const napping = await Kit.post(url, session, Kit.toolCall("nap", "nap"))
    // One body fixes the order.
    const ids = Array.from({ length: 60 }, (_, i) => `call ${i}`)
    const filler = "x".repeat(50_000)
    const batch = ids.flatMap((id, i) => [
      Kit.toolCall(id, "count", { filler }),
      ...(i % 3 === 0 ? [`{"jsonrpc":"2.0","method":"notifications/n${i}","params":{"filler":"${filler}"}}`] : [])
    ])
    const answers = Kit.post(url, session, `[${batch.join()}]`)
    const isFull = async () => Number((await Kit.sessionOn(origin, pid))?.inFlight) > 3
    await Kit.eventually("the pipe is full", isFull)
    Kit.kill(pid, "SIGUSR2")
    await (await answers).text()
    assert.include(await napping.text(), "\"released\"")
    const heard: ReadonlyArray<string> = JSON.parse(await Kit.toolText(url, session, "inOrder"))
    assert.deepStrictEqual(
      heard.filter((what) => /call|notifications/.test(what)),
      ids.flatMap((id, i) => i % 3 === 0 ? [id, `notifications/n${i}`] : [id])
    )
  })
})
