/**
 * Runs the `ts` blocks of docstrings and manuals.
 *
 * Each `expression // => value` in a block is a claim: both are compared. A block that begins with a file's name (`// server.ts`) is a
 * whole file: the tests start it, or run its tests.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { Deferred, Effect, Exit, Fiber, Layer, Scope, Stream } from "effect"
import { HttpClient, HttpRouter, HttpServerResponse } from "effect/http"
import { execFileSync, spawn } from "node:child_process"
import { once } from "node:events"
import { globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { assert, describe, it } from "vitest"
import { SessionPool } from "../src/index.ts"

const root = new URL("..", import.meta.url).pathname
const artifacts = `${root}test/artifacts/examples/`

/** All sources and manuals with `ts` blocks. */
const sources = [
  ...globSync(["src/**/*.{ts,md}", "test/**/README.md"], {
    cwd: root,
    exclude: ["**/node_modules/**", "test/artifacts/**"]
  }),
  "README.md"
]
  .filter((file) => /^(?: \* )?```ts\n/m.test(readFileSync(`${root}${file}`, "utf8")))
  .toSorted()

interface Example {
  readonly where: string
  readonly code: string
  /** The name of a block that is a whole file. */
  readonly file: string | undefined
}

/** The `ts` blocks of a source, without the stars of a docstring. */
const examplesOf = (source: string): ReadonlyArray<Example> => {
  const text = readFileSync(`${root}${source}`, "utf8").replace(/^ \* ?/gm, "")
  return [...text.matchAll(/^```ts\n([\s\S]*?)^```/gm)].map(([, code = ""], i) => ({
    where: `${source}, example ${i + 1}`,
    code,
    file: /^\/\/ (\S+\.ts)\n/.exec(code)?.[1]
  }))
}

/** Imports the sources instead of the package, which has no build here. */
const withSources = (code: string): string =>
  code
    .replace(/"effect-session-pool"/g, "\"../../../src/index.ts\"")
    .replace(/"effect-session-pool\/cluster"/g, "\"../../../src/SessionEntity.ts\"")
    .replace(/"effect-session-pool\/gateway"/g, "\"../../../src/gateway/Gateway.ts\"")

/** An example as a module that exports both sides of its claims. */
const toModule = (code: string): string => {
  const body = withSources(code).replace(/^(.*\S)\s*\/\/ => (.*)$/gm, "claims.push([$1, $2])")
  // The right side of a claim may need an import that the left side does not.
  const needsOption = body.includes("Option.") && !/^import .*[{ ]Option\b/m.test(body)
  return `${needsOption ? "import { Option } from \"effect\"\n" : ""}export const claims = []\n${body}`
}

const examples = sources.flatMap(examplesOf)
rmSync(artifacts, { recursive: true, force: true })
mkdirSync(`${artifacts}types`, { recursive: true })
for (const { code, file } of examples) {
  if (file !== undefined) writeFileSync(`${artifacts}${file}`, withSources(code).replace("port: 3000", "port: 0"))
}

describe("examples", () => {
  for (const [i, { code, file, where }] of examples.entries()) {
    if (file !== undefined) continue
    it(`${where} returns what it says`, async () => {
      const path = `${artifacts}example-${i}.ts`
      writeFileSync(path, toModule(code))
      const { claims } = await import(/* @vite-ignore */ path)
      assert.isAtLeast(claims.length, 1, "an example claims something")
      for (const [actual, expected] of claims) assert.deepStrictEqual(actual, expected)
    })
  }

  it("each public module and manual has examples", () => {
    assert.includeMembers(sources, [
      "README.md",
      "src/README.md",
      "src/SessionEntity.ts",
      "src/SessionKey.ts",
      "src/SessionPool.ts",
      "src/gateway/Gateway.ts",
      "src/gateway/README.md",
      "src/internal/errors.ts"
    ])
  })

  it("all compile", () => {
    for (const [i, { code, file }] of examples.entries()) {
      writeFileSync(`${artifacts}types/${file ?? `example-${i}.ts`}`, code)
    }
    const config = { extends: "../../../../tsconfig.json", include: ["."], exclude: [] }
    writeFileSync(`${artifacts}types/tsconfig.json`, JSON.stringify(config))
    execFileSync("node_modules/.bin/tsc", ["--noEmit", "--project", `${artifacts}types`], { cwd: root, stdio: "pipe" })
  })
})

describe("the server of the library's manual", () => {
  it("serves requests and metrics, closes its sessions on SIGINT and exits with 130", async () => {
    const server = spawn(process.execPath, [`${artifacts}server.ts`], { stdio: ["ignore", "pipe", "inherit"] })
    const exited = once(server, "exit")
    let log = ""
    server.stdout.setEncoding("utf8").on("data", (text) => log += text)
    try {
      let port: string | undefined
      while (port === undefined) {
        await once(server.stdout, "data")
        port = /Listening on \S+:(\d+)/.exec(log)?.[1]
      }
      const url = `http://localhost:${port}`
      const post = async () => (await fetch(`${url}/count/ada`, { method: "POST" })).text()
      assert.deepStrictEqual([await post(), await post()], ["1", "2"])
      const metrics = await (await fetch(`${url}/metrics`)).text()
      assert.include(metrics, "session_pool_launches_total{pool=\"app/Sessions\",outcome=\"success\"} 1")
      server.kill("SIGINT")
      assert.deepStrictEqual(await exited, [130, null])
      assert.include(log, "close ada")
    } finally {
      server.kill("SIGKILL")
    }
  })

  // Registers the tests of the manual's `server.test.ts` here.
  describe("has a test that passes", () => import(/* @vite-ignore */ `${artifacts}server.test.ts`))

  it("drains before the pool closes its sessions, and a get is leased until a streamed response is sent", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      class Sessions extends SessionPool.Service<Sessions>()("test/Sessions", {
        lookup: (user: string) =>
          Effect.acquireRelease(Effect.succeed(user), () => Effect.sync(() => log.push("closed")))
      }) {}
      const [begun, goOn] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const handler = Effect.map(Sessions.get("ada"), (user) => {
        const late = Effect.andThen(Deferred.succeed(begun, undefined), Effect.as(Deferred.await(goOn), user))
        return HttpServerResponse.stream(Stream.encodeText(Stream.fromEffect(late)))
      })
      const serve = HttpRouter.serve(HttpRouter.add("GET", "/", handler), {
        disableLogger: true,
        disableListenLog: true
      })
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(
        serve.pipe(Layer.provideMerge(Sessions.layer), Layer.provideMerge(NodeHttpServer.layerTest)),
        scope
      )
      const request = HttpClient.get("/").pipe(
        Effect.flatMap((response) => response.text),
        Effect.map((text) => log.push(`answered ${text}`)),
        Effect.provideContext(context)
      )
      const answer = yield* Effect.forkChild(request)
      yield* Deferred.await(begun)
      const { leases } = yield* Effect.provideContext(Sessions.stats, context)
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      yield* Effect.sleep("50 millis")
      yield* Deferred.succeed(goOn, undefined)
      yield* Fiber.join(answer)
      yield* Fiber.join(closing)
      assert.deepStrictEqual([leases, ...log], [1, "answered ada", "closed"])
    }).pipe(Effect.runPromise))
})
