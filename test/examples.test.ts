/**
 * The examples of the docstrings and of the README are run, and what they say they return is compared.
 *
 * An example is a `ts` block; each `expression // => value` in it is a claim. Blocks marked `ts skip` are not run.
 */
import { Option } from "effect"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { assert, describe, it } from "vitest"
import * as Gateway from "../src/gateway/Gateway.ts"
import * as Main from "../src/index.ts"
import * as SessionEntity from "../src/SessionEntity.ts"

const root = new URL("..", import.meta.url).pathname
const artifacts = `${root}test/artifacts/`

interface Example {
  readonly where: string
  readonly code: string
}

const sources = [
  "src/SessionPool.ts",
  "src/SessionKey.ts",
  "src/internal/errors.ts",
  "src/SessionEntity.ts",
  "src/gateway/Gateway.ts",
  "src/gateway/README.md",
  "README.md"
]

/** The `ts` blocks of a file, without the stars of a docstring. */
const examplesOf = (file: string): ReadonlyArray<Example> => {
  const text = readFileSync(`${root}${file}`, "utf8").replace(/^ \* ?/gm, "")
  return [...text.matchAll(/^```ts(?: run)?\n([\s\S]*?)^```/gm)].map((match, i) => ({
    where: `${file}, example ${i + 1}`,
    code: match[1] ?? ""
  }))
}

/** An example as a module that exports what each of its claims says and what is true. */
const toModule = (code: string): string => {
  const body = code
    .replace(/"effect-session-pool"/g, "\"../../src/index.ts\"")
    .replace(/"effect-session-pool\/cluster"/g, "\"../../src/SessionEntity.ts\"")
    .replace(/"effect-session-pool\/gateway"/g, "\"../../src/gateway/Gateway.ts\"")
    .replace(/^(.*\S)\s*\/\/ => (.*)$/gm, "claims.push([$1, $2])")
  const imports = [...body.matchAll(/^import .*$/gm)].map(([line]) => line)
  const rest = body.replace(/^import .*$/gm, "")
  const needed = rest.includes("Option.") && !imports.some((line) => /[{ ]Option\b/.test(line))
  return [
    ...imports,
    ...(needed ? ["import { Option } from \"effect\""] : []),
    "export const claims = []",
    rest
  ].join("\n")
}

describe("examples", () => {
  const examples = sources.flatMap(examplesOf)
  mkdirSync(artifacts, { recursive: true })
  for (const [i, { code, where }] of examples.entries()) {
    it(`${where} returns what it says`, async () => {
      const file = `${artifacts}example-${i}.ts`
      writeFileSync(file, toModule(code))
      const { claims } = await import(/* @vite-ignore */ file)
      assert.isAtLeast(claims.length, 1, "an example claims something")
      for (const [actual, expected] of claims) assert.deepStrictEqual(actual, expected)
    })
  }

  it("every public function and error has one, except the reasons of an error", () => {
    const reasons = Main.SessionPool.SessionPoolError.fields.reason.members.map(({ identifier }) => identifier)
    assert.deepStrictEqual(reasons, ["LookupTimeout", "CapacityExceeded", "PoolClosed"])
    const [pool, key, errors, entity, gateway] = sources.map((file) => readFileSync(`${root}${file}`, "utf8"))
    const lacking: Array<string> = []
    const modules = [
      ["SessionPool", Main.SessionPool, `${pool}\n${errors}`],
      [
        "SessionKey",
        Main.SessionKey,
        key
      ],
      ["SessionEntity", SessionEntity, entity],
      ["Gateway", { layer: Gateway.layer, config: Gateway.config }, gateway]
    ] as const
    for (const [name, module, docs = ""] of modules) {
      for (const [symbol, value] of Object.entries(module)) {
        if (typeof value !== "function" || reasons.includes(symbol)) continue
        const doc = new RegExp(`/\\*\\*((?:(?!\\*/)[\\s\\S])*)\\*/\\nexport (?:const|class) ${symbol}\\b`).exec(docs)
        if (doc?.[1]?.includes("**Example**") !== true) lacking.push(`${name}.${symbol}`)
      }
    }
    assert.deepStrictEqual(lacking, [])
  })

  it("there are examples at all, in each of the places", () => {
    const counts = sources.map((file) => examplesOf(file).length)
    assert.isTrue(Option.isSome(Option.fromNullishOr(counts[0])) && counts.every((count) => count > 0))
  })
})
