/** What the package promises to whoever installs it. */
import { execFileSync } from "node:child_process"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { assert, describe, it } from "vitest"
import { version } from "../src/gateway/protocol/version.ts"
import * as Settings from "../src/gateway/settings/Settings.ts"
import { areInstalled } from "./kit/programs.ts"

const root = new URL("..", import.meta.url).pathname
const manifest = JSON.parse(readFileSync(`${root}package.json`, "utf8"))

describe("the package", () => {
  it("the core, with and without a cluster, loads no Node module, no gateway, no platform package and no parser", () => {
    const probe = `
      import { registerHooks } from "node:module"
      const seen = []
      registerHooks({
        resolve(specifier, context, next) {
          const resolved = next(specifier, context)
          seen.push([context.parentURL ?? "", resolved.url])
          return resolved
        }
      })
      for (const entry of ["index", "SessionPool", "SessionKey", "SessionEntity"]) await import("${root}src/" + entry + ".ts")
      console.log(JSON.stringify(seen))`
    const output = execFileSync(process.execPath, ["--input-type=module", "--eval", probe], { encoding: "utf8" })
    const seen: ReadonlyArray<readonly [string, string]> = JSON.parse(output)
    const loaded = seen.map(([, url]) => url)
    assert.isTrue(loaded.some((url) => url.endsWith("/src/internal/transitions.ts")))
    assert.deepStrictEqual(
      loaded.filter((url) =>
        url.startsWith("node:") || /\/src\/gateway\/|@effect\/platform-node|\/(jose|jsonc-parser)\//.test(url)
      ),
      []
    )
  })

  it("every export has its source, and the types come first", () => {
    for (const [name, target] of Object.entries<Record<string, string>>(manifest.exports)) {
      if (name === "./package.json") continue
      assert.deepStrictEqual(Object.keys(target), ["types", "default"])
      const source = String(target["default"]).replace("./dist/", "src/").replace(/\.js$/, ".ts")
      assert.isTrue(existsSync(`${root}${source}`), source)
    }
    assert.deepStrictEqual(Object.keys(manifest.exports), [
      "./package.json",
      ".",
      "./SessionPool",
      "./SessionKey",
      "./cluster",
      "./gateway"
    ])
    assert.deepStrictEqual(manifest.bin, { "effect-session-pool": "./dist/gateway/bin.js" })
    assert.isTrue(existsSync(`${root}src/gateway/bin.ts`))
  })

  it("the gateway tells the version of the package, and its page is built with it", () => {
    assert.strictEqual(version, manifest.version)
    assert.isTrue(existsSync(`${root}src/gateway/assets/page.html`))
    assert.include(manifest.scripts.build, "cpSync('src/gateway/assets', 'dist/gateway/assets'")
  })

  it("the gateway's reference tells every setting with its default and its meaning", () => {
    const reference = readFileSync(`${root}src/gateway/REFERENCE.md`, "utf8")
    for (const [name, { description, shown }] of Object.entries(Settings.all)) {
      assert.include(reference, `| \`${name}\` | ${shown === "" ? "none" : shown} | ${description} |`)
    }
  })

  it("an example has at most 80 lines, begins with a sentence on what it shows, and has a test beside it", () => {
    const files = readdirSync(`${root}src/examples`)
    const examples = files.filter((file) => !file.endsWith(".test.ts"))
    assert.deepStrictEqual(files.toSorted(), examples.flatMap((file) => [file.replace(".ts", ".test.ts"), file]))
    for (const file of examples) {
      const text = readFileSync(`${root}src/examples/${file}`, "utf8")
      assert.isAtMost(text.trimEnd().split("\n").length, 80, file)
      assert.match(text, /^\/\*\*(?: |\n \* )An? /, file)
      assert.include(text, "from \"effect-session-pool", file)
    }
  })

  it("effect is a peer, the platform and the database optional ones, and only the gateway's parser of files and its library for tokens are installed with it", () => {
    assert.deepStrictEqual(Object.keys(manifest.peerDependencies), [
      "@effect/platform-node",
      "@effect/sql-pg",
      "effect"
    ])
    assert.deepStrictEqual(manifest.peerDependenciesMeta, {
      "@effect/platform-node": { optional: true },
      "@effect/sql-pg": { optional: true }
    })
    assert.deepStrictEqual(Object.keys(manifest.dependencies), ["jose", "jsonc-parser"])
    assert.isFalse(manifest.sideEffects)
    assert.strictEqual(manifest.engines.node, ">=22.19")
  })

  it("a tool that is no dependency has its version in the script that runs it", () => {
    for (const [name, script] of Object.entries<string>(manifest.scripts)) {
      for (const [, tool = ""] of script.matchAll(/--package=(\S+)/g)) {
        assert.match(tool, /.@\d+\.\d+\.\d+$/, name)
      }
    }
  })

  it.skipIf(!areInstalled("git"))("the top level holds nothing but what it names", () => {
    const names = execFileSync("git", ["ls-files"], { cwd: root, encoding: "utf8" }).split("\n")
    const top = new Set(names.map((name) => name.split("/")[0] ?? "").filter((name) => name !== ""))
    const allowed = [
      "package.json",
      "package-lock.json",
      "tsconfig.json",
      "src",
      "test",
      "README.md",
      "LICENSE",
      "CHANGELOG.md"
    ]
    assert.deepStrictEqual([...top].filter((name) => !name.startsWith(".") && !allowed.includes(name)), [])
  })
})
