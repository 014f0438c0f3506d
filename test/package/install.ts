/**
 * Packs the package, installs it into empty projects as strangers do, and compiles and runs what they might write.
 *
 * One project resolves as Node does and has `effect` alone; it is compiled by three generations of TypeScript, with the
 * package's declarations checked too, and its command says what it lacks. The other resolves as bundlers do and has the
 * platform and the database: the gateway, its command and the examples. What is compiled or bundled runs in both versions
 * of Node. The examples are loaded there, not started, because each is a server.
 */
import { execFileSync, spawnSync } from "node:child_process"
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Progress from "../kit/progress.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))
const pinned = (name: string): string => `${name}@${manifest.devDependencies[name]}`
const compilers = {
  "typescript": pinned("typescript"),
  "typescript-6": "typescript@6.0.3",
  "typescript-5": "typescript@5.9.3"
}
const otherNode = "node@22.23.3"

const folder = mkdtempSync(join(tmpdir(), "effect-session-pool-"))
process.on("exit", () => rmSync(folder, { recursive: true, force: true }))

const run = (cwd: string, command: string, args: ReadonlyArray<string>): string => {
  Progress.step([command, ...args].join(" "))
  try {
    return execFileSync(command, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim()
  } catch (error) {
    Progress.clear()
    if (error instanceof Error && "stdout" in error) console.error(error.stdout)
    throw error
  }
}

/** What a command that ends with exit code 1 says. */
const refused = (cwd: string, command: string, args: ReadonlyArray<string>): string => {
  const { status, stderr } = spawnSync(command, args, { cwd, encoding: "utf8" })
  if (status !== 1) throw new Error(`${command} ${args.join(" ")}: exit code ${status}, not 1: ${stderr}`)
  return stderr
}

const expect = (what: string, actual: string, expected: string): void => {
  if (!actual.includes(expected)) throw new Error(`${what}: expected ${expected}, got ${actual}`)
  Progress.clear()
  console.log(`ok: ${what}`)
}

/** The example of the docstring of `./cluster`; it says whether each of its claims holds. */
const clusterExample = (): string => {
  const text = readFileSync(join(root, "src/SessionEntity.ts"), "utf8").replace(/^ \* ?/gm, "")
  const [, code = ""] = /^```ts\n([\s\S]*?)^```/m.exec(text) ?? []
  return code.replace(
    /^(.*\S)\s*\/\/ => (.*)$/gm,
    "console.log(JSON.stringify($1) === JSON.stringify($2), \"claimed\")"
  )
}

/** An empty project with these packages, and what a stranger might write in it. */
const project = (name: string, packages: ReadonlyArray<string>): string => {
  const home = join(folder, name)
  mkdirSync(home)
  writeFileSync(
    join(home, "package.json"),
    JSON.stringify({ private: true, type: "module", allowScripts: { node: true } })
  )
  run(home, "npm", ["install", "--no-audit", "--no-fund", "--prefer-offline", ...packages])
  cpSync(join(root, "test/package/program.ts"), join(home, "program.ts"))
  writeFileSync(join(home, "cluster.ts"), clusterExample())
  return home
}

const compile = (home: string, compiler: string, options: ReadonlyArray<string>): void => {
  const strict = ["--strict", "--exactOptionalPropertyTypes", "--target", "es2022", "--types", "node"]
  run(home, process.execPath, [`node_modules/${compiler}/bin/tsc`, ...strict, ...options])
}

const [{ filename }] = JSON.parse(run(root, "npm", ["pack", "--json", "--pack-destination", folder]))
const tarball = join(folder, filename)
const nodes = { [process.version]: process.execPath, [otherNode]: join(folder, "node/node_modules/node/bin/node") }
project("node", [otherNode])

const plain = project("nodenext", [
  tarball,
  pinned("effect"),
  pinned("@types/node"),
  ...Object.entries(compilers).map(([alias, spec]) => `${alias}@npm:${spec}`)
])
for (const [alias, spec] of Object.entries(compilers)) {
  const skip = ["--skipLibCheck", "false"]
  compile(plain, alias, ["--module", "nodenext", ...skip, "--outDir", alias, "program.ts", "cluster.ts"])
  for (const [version, node] of Object.entries(nodes)) {
    expect(`nodenext, ${spec}, runs in ${version}`, run(plain, node, [`${alias}/program.js`]), "true 2 2\nclosed")
    const entity = run(plain, node, [`${alias}/cluster.js`])
    expect(`nodenext, ${spec}, the example of the cluster runs in ${version}`, entity, "true claimed")
  }
}
expect(
  "the command without the platform says what to install",
  refused(plain, "npx", ["--no-install", "effect-session-pool", "--version"]),
  "The gateway needs @effect/platform-node, which is not installed. Run npm install @effect/platform-node"
)

// The first block of the library's manual, in an empty directory, then the first program.
const empty = join(folder, "empty")
mkdirSync(empty)
const manual = readFileSync(join(root, "src/README.md"), "utf8")
const [, commands = ""] = /^```sh\n([\s\S]*?)^```/m.exec(manual) ?? []
const [, first = ""] = /^```ts\n([\s\S]*?)^```/m.exec(manual) ?? []
run(empty, "sh", [
  "-ec",
  commands.replace("install effect-session-pool effect", `install ${tarball} ${pinned("effect")}`)
])
writeFileSync(join(empty, "shells.ts"), first.replace(/^(await .*) \/\/ => .*$/m, "console.log($1)"))
expect("the manual's first commands and program run", run(empty, process.execPath, ["shells.ts"]), "2")

const full = project("bundler", [
  tarball,
  ...["effect", "@effect/platform-node", "@effect/sql-pg", "@types/node", "typescript"].map(pinned),
  "esbuild@0.28.2"
])
const shipped = join(full, "node_modules/effect-session-pool/src/examples")
cpSync(shipped, join(full, "examples"), { recursive: true, filter: (file) => !file.endsWith(".test.ts") })
const examples = readdirSync(join(full, "examples")).map((name) => `examples/${name}`)
writeFileSync(
  join(full, "gateway.ts"),
  "import * as Gateway from \"effect-session-pool/gateway\"\nconsole.log(typeof Gateway.layer)\n"
)
const bundled = ["--module", "esnext", "--moduleResolution", "bundler", "--skipLibCheck", "--noEmit"]
const libraries = ["--lib", "es2024,dom,esnext.disposable"]
compile(full, "typescript", [...bundled, ...libraries, "program.ts", "cluster.ts", "gateway.ts", ...examples])
const bundle = ["--bundle", "--platform=node", "--format=esm", "--outfile=bundle.mjs", "program.ts"]
run(full, join(full, "node_modules/.bin/esbuild"), bundle)
const checked = run(full, "npx", ["--no-install", "effect-session-pool", "--check", "--", "node"])
expect("bundler, npx finds the command", checked, "The configuration is valid")
for (const [version, node] of Object.entries(nodes)) {
  expect(`bundler, the bundle runs in ${version}`, run(full, node, ["bundle.mjs"]), "true 2 2\nclosed")
  expect(`bundler, the example of the cluster runs in ${version}`, run(full, node, ["cluster.ts"]), "true claimed")
  expect(`bundler, the gateway loads in ${version}`, run(full, node, ["gateway.ts"]), "function")
  const cli = run(full, node, ["node_modules/effect-session-pool/dist/gateway/bin.js", "--version"])
  expect(`bundler, the command runs in ${version}`, cli, manifest.version)
  for (const example of examples) {
    const code = `await import("./${example}"); console.log("loaded")`
    expect(`${example} loads in ${version}`, run(full, node, ["--input-type=module", "--eval", code]), "loaded")
  }
}

const command = "node_modules/effect-session-pool/dist/gateway"
rmSync(join(full, command, "version.js"))
for (const [version, node] of Object.entries(nodes)) {
  const said = refused(full, node, [`${command}/bin.js`, "--version"])
  expect(`the command tells of any other module that is missing in ${version}`, said, "ERR_MODULE_NOT_FOUND")
  expect(`and of which in ${version}`, said, "version.js")
}
