/**
 * How large the core is in a browser's bundle, minified and gzipped, with `effect` left out; and a proof that it belongs
 * there: the same bundle with `effect` in it imports nothing, and works where there is nothing of Node.
 *
 * `npm run size` builds the package first and puts esbuild into the path.
 */
import { spawnSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { runInNewContext } from "node:vm"
import { gzipSync } from "node:zlib"

/** Grows when the core does; raise it knowingly. */
const limit = 14_000

const bundle = (code: string, flags: ReadonlyArray<string>): string => {
  // The project's own tsconfig would lead to the source: what counts is what is shipped.
  const shipped = ["--tsconfig-raw={}", "--platform=browser", "--target=es2022"]
  const args = ["--bundle", "--minify", "--log-level=warning", ...shipped, ...flags]
  const { error, status, stderr, stdout } = spawnSync("esbuild", args, { input: code, encoding: "utf8" })
  if (error !== undefined || status !== 0 || stderr !== "") throw new Error(`esbuild: ${error?.message ?? stderr}`)
  return stdout
}

const entries = {
  "import { SessionPool }": "export { SessionPool } from \"effect-session-pool\"",
  "make and use alone": "export { make, use } from \"effect-session-pool/SessionPool\"",
  "import { SessionKey }": "export { SessionKey } from \"effect-session-pool\"",
  "an import that nothing uses": "import { SessionPool } from \"effect-session-pool\""
}

const sizes = Object.entries(entries).map(([what, code]) => {
  const output = bundle(code, ["--format=esm", "--external:effect"])
  const imported = [...output.matchAll(/\bfrom"([^"]+)"|\bimport"([^"]+)"/g)].map(([, from, bare]) =>
    from ?? bare ?? ""
  )
  const others = imported.filter((name) => name !== "effect" && !name.startsWith("effect/"))
  if (others.length > 0) throw new Error(`${what} imports ${others.join(", ")}`)
  return { what, minified: output.length, gzipped: gzipSync(output, { level: 9 }).length }
})
console.table(sizes)

const program = `
  import { Effect } from "effect"
  import { SessionPool } from "effect-session-pool"
  Effect.gen(function*() {
    const pool = yield* SessionPool.make({ lookup: (user) => Effect.succeed("connection of " + user) })
    return yield* SessionPool.use(pool, "ada", Effect.succeed)
  }).pipe(Effect.scoped, Effect.runPromise).then(report)`
const { promise, resolve } = Promise.withResolvers<unknown>()
// What a page has too.
const { AbortController, performance, TextDecoder, TextEncoder, URL } = globalThis
const timers = { clearInterval, clearTimeout, setInterval, setTimeout }
const page = Object.assign(timers, { AbortController, performance, TextDecoder, TextEncoder, URL })
runInNewContext(bundle(program, ["--format=iife"]), Object.assign(page, { report: resolve }))
const answer = await promise
if (answer !== "connection of ada") throw new Error(`the bundle returned ${String(answer)}`)
console.log("The bundle with effect imports nothing, and works without anything of Node.")

const [{ gzipped } = { gzipped: Infinity }] = sizes
const kilobytes = (bytes: number): string => `${Math.round(bytes / 1000)} kB`
const told = `adds ${kilobytes(gzipped)} (gzipped) to a bundle`
if (!readFileSync("README.md", "utf8").includes(told)) throw new Error(`README.md must say that the import ${told}`)
if (gzipped > limit) throw new Error(`SessionPool takes ${gzipped} bytes gzipped, more than ${limit}`)
