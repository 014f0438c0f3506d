/** Every file in `test/examples` is run, and what it returns is compared. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Logger } from "effect"
import { readdirSync, readFileSync } from "node:fs"
import * as Cluster from "./examples/cluster.ts"
import * as Environment from "./examples/environment.ts"
import * as HttpApi from "./examples/httpApi.ts"
import * as LanguageServer from "./examples/languageServer.ts"
import * as Metrics from "./examples/metrics.ts"
import * as Shell from "./examples/shell.ts"
import * as Sqlite from "./examples/sqlite.ts"
import * as TestLayer from "./examples/testLayer.ts"
import * as Tracing from "./examples/tracing.ts"

const folder = new URL("examples/", import.meta.url)

/** Of each file: what it exports, and what that returns. */
const examples = {
  "cluster.ts": [Cluster.main, { runners: ["first", "second"], counts: [2], afterwards: true }],
  "environment.ts": [Environment.main, {
    byDefault: "both open",
    limited: "CapacityExceeded",
    refused: [
      "SchemaError(a duration that is not negative, such as \"30 minutes\"",
      "  at [\"DIRECTORIES\"][\"IDLE_TIME_TO_LIVE\"])"
    ]
  }],
  "httpApi.ts": [HttpApi.main, { sizes: [4, 6, 8], hits: 1, launches: 2 }],
  "languageServer.ts": [LanguageServer.main, { documents: [1, 2, 1, 1], retired: ["Disconnected", "Invalid"] }],
  "metrics.ts": [Metrics.main, [
    "session_pool_launches_total{pool=\"app/ScratchDirectories\",outcome=\"success\"} 2",
    "session_pool_retirements_total{pool=\"app/ScratchDirectories\",reason=\"Invalidated\"} 1"
  ]],
  "shell.ts": [Shell.main, { ada: ["hello from /"], bob: { output: ["''"], code: 1 }, again: ["''"] }],
  "sqlite.ts": [Sqlite.main, { ids: [1, 2, 1, 1, 3], refused: "DatabaseError", launches: 4, evicted: 2 }],
  "testLayer.ts": [TestLayer.main, {
    production: { text: "one\ntwo\n", hits: 1, launches: 2 },
    test: { text: "one\ntwo\n", hits: 1, launches: 2 }
  }],
  "tracing.ts": [Tracing.main, [
    "SessionPool.close",
    "SessionPool.launch",
    "SessionPool.launch > make a directory",
    "request",
    "request",
    "request > read the directory",
    "request > read the directory"
  ]]
} as const

describe("the examples", () => {
  for (const [file, [main, expected]] of Object.entries(examples)) {
    // The servers tell where they listen.
    it.live(`${file} returns what it should`, () =>
      Effect.gen(function*() {
        assert.deepStrictEqual<unknown>(yield* main, expected)
      }).pipe(Effect.provide(Logger.layer([]))))
  }

  it("are all run, each has at most 80 lines, and begins with a sentence on what it shows", () => {
    assert.deepStrictEqual(readdirSync(folder).toSorted(), Object.keys(examples).toSorted())
    for (const file of Object.keys(examples)) {
      const text = readFileSync(new URL(file, folder), "utf8")
      assert.isAtMost(text.trimEnd().split("\n").length, 80, file)
      assert.match(text, /^\/\*\*(?: |\n \* )(?:An?|Requests) /, file)
    }
  })
})
