/** A language server per project: `closed` notices one that crashes, `validate` one that hangs, and the next request gets a new one. */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Deferred, Effect, Queue, Schema, Stream } from "effect"
import { SessionPool } from "effect-session-pool"
import { ChildProcess } from "effect/process"

class ServerGone extends Schema.TaggedError<ServerGone>()("ServerGone", {}) {}

interface Server {
  readonly request: (method: string) => Effect.Effect<unknown, ServerGone>
  readonly gone: Effect.Effect<unknown, unknown>
}

const Reply = Schema.fromJsonString(Schema.Struct({ id: Schema.Number, result: Schema.Unknown }))
const program = new URL("../fixtures/language-server.ts", import.meta.url).pathname

/** The bodies of a stream of messages, each after a header that says its length. */
const bodies = <E>(stdout: Stream.Stream<Uint8Array, E>) => {
  let received = Buffer.alloc(0)
  return Stream.flatMap(stdout, (chunk) => {
    const complete: Array<string> = []
    received = Buffer.concat([received, chunk])
    while (true) {
      const start = received.indexOf("\r\n\r\n") + 4
      const end = start + Number(/Content-Length: (\d+)/.exec(received.toString("latin1"))?.[1])
      if (start < 4 || !(received.length >= end)) return Stream.fromIterable(complete)
      complete.push(received.subarray(start, end).toString())
      received = received.subarray(end)
    }
  })
}

const start = Effect.fnUntraced(function*() {
  const input = yield* Queue.unbounded<string>()
  const stdin = Stream.encodeText(Stream.fromQueue(input))
  const child = yield* ChildProcess.make(process.execPath, [program], { stdin, stderr: "ignore" })
  const waiting = new Map<number, Deferred.Deferred<unknown>>()
  yield* bodies(child.stdout).pipe(
    Stream.mapEffect((body) => Schema.decodeEffect(Reply)(body)),
    Stream.runForEach(({ id, result }) => Deferred.succeed(waiting.get(id) ?? Deferred.makeUnsafe(), result)),
    Effect.forkScoped
  )
  let lastId = 0
  const request = Effect.fnUntraced(function*(method: string) {
    const [id, reply] = [++lastId, yield* Deferred.make<unknown>()]
    waiting.set(id, reply)
    const body = JSON.stringify({ jsonrpc: "2.0", id, method })
    yield* Queue.offer(input, `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`)
    const gone = Effect.andThen(Effect.exit(child.exitCode), Effect.fail(new ServerGone()))
    return yield* Effect.ensuring(Effect.raceFirst(Deferred.await(reply), gone), Effect.sync(() => waiting.delete(id)))
  })
  const server: Server = { request, gone: child.exitCode }
  yield* request("initialize")
  return server
})

class Servers extends SessionPool.Service<Servers>()("app/Servers", {
  lookup: (_project: string) => start(),
  closed: (server) => server.gone,
  validate: (server) => server.request("ping").pipe(Effect.timeout("2 seconds"), Effect.isSuccess),
  validateAfter: "10 millis"
}) {}

export const main = Effect.gen(function*() {
  const retired = yield* SessionPool.events(yield* Servers).pipe(
    Stream.filter((event) => event._tag === "Retired"),
    Stream.map(({ reason }) => reason),
    Stream.toQueue({ capacity: 16 })
  )
  const request = (method: string) => Servers.use("project", (server) => server.request(method))
  const documents = [yield* request("open"), yield* request("open")]
  yield* request("crash")
  const first = yield* Queue.take(retired)
  documents.push(yield* request("open"))
  yield* Effect.delay(request("hang"), "20 millis")
  documents.push(yield* Effect.delay(request("open"), "20 millis"))
  return { documents, retired: [first, yield* Queue.take(retired)] }
}).pipe(Effect.scoped, Effect.provide(Servers.layer), Effect.provide(NodeServices.layer))

if (import.meta.main) NodeRuntime.runMain(Effect.flatMap(main, Console.log))
