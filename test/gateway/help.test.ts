/** The command's output: help, errors with the next step, completions and colours. */
import { execFileSync, spawn } from "node:child_process"
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import * as CommandOutput from "../../src/gateway/app/CommandOutput.ts"
import * as Settings from "../../src/gateway/settings/Settings.ts"
import * as Programs from "../../src/gateway/transports/Programs.ts"
import * as Command from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const directory = Serving.directory()
/** A link to itself. A look at it is an error, as in a directory without search permission. */
const loop = join(directory, "loop")
symlinkSync(loop, loop)

const certificate = new URL("../fixtures/tls/cert.pem", import.meta.url).pathname

/** Overrides the variables of the machine that runs the tests. */
const colourless = { NO_COLOR: "", FORCE_COLOR: "", TERM: "xterm" }
const said = (args: ReadonlyArray<string>, env: Record<string, string> = {}) =>
  Command.runInProcess(args, { ...colourless, ...env })
const escape = "\u001b"
/** The output of a command that exits with 0. */
const printed = async (args: ReadonlyArray<string>, env?: Record<string, string>) => {
  const { exit, output } = await said(args, env)
  assert.strictEqual(exit, 0)
  return output
}
/** The flags of all settings, and the command's own. */
const flags = Object.keys(Settings.all).filter((name) => !Settings.secret.includes(name))
  .map((name) => `--${Settings.flagName(name)}`)
  .concat("--config", "--check", "--name", "--completions")

describe("--help", () => {
  it("--help lists every flag and default, and its examples use flags that exist", async () => {
    const output = await printed(["--help"])
    for (const flag of flags) assert.include(output, `${flag} `)
    const examples = output.slice(output.indexOf("EXAMPLES"))
    assert.isAtLeast(examples.split("  # ").length, 5)
    for (const [flag] of examples.replace(/ -- .*/g, "").matchAll(/--[a-z-]+/g)) assert.include(flags, flag)
    const parts = ["choices: auto, legacy, modern", "A duration is", "bytes as 4194304 or \"4 MiB\""]
      .concat("default: 30 minutes", "default: 16 KiB", "GATEWAY_IDLE_TIME_TO_LIVE")
    for (const part of parts) assert.include(output.replace(/\s+/g, " "), part)
  })
})

/** Writes an `mcpServers` file with one entry. */
const fileOf = (name: string, entry: object) => Serving.file(name, { mcpServers: { a: entry } })

describe("errors of the command", async () => {
  const taken = new URL(await Serving.upstream(() => {})).port
  const [cert, empty, blank] = [certificate, Serving.file("empty.pem", ""), Serving.file("blank.pem", "\n")]
  const notExecutable = fileOf("help-mode.json", { command: Serving.file("help-mode.txt", "x") })
  const noDirectory = fileOf("help-cwd.json", { command: "sh", cwd: "/no/place" })
  const cases: ReadonlyArray<readonly [args: ReadonlyArray<string>, ...parts: ReadonlyArray<string>]> = [
    [["--frob"], "--frob", "effect-session-pool --help"],
    [["--era", "both"], "--era", "\"auto\" | \"legacy\" | \"modern\""],
    [["--prot", "1"], "Did you mean", "--port"],
    [["--keys", "x"], "Set GATEWAY_KEYS"],
    [["--port"], "--port", "effect-session-pool --help"],
    [["--port", "many"], "an integer from 0 to 65535", "--check"],
    [["--completions", "dos"], "\"bash\"", "effect-session-pool --help"],
    [["--config", "/no/such.json"], "cannot be read", "NotFound", "Is the path right?"],
    [["--config", directory], "Is it a file"],
    [["--config", Serving.file("broken.json", "{")], "not JSON", "Correct it"],
    [["--config", "x.json", "--", "y"], "not both"],
    [["--name", "x"], "Give both"],
    [["--name", "a b", "--", "sh"], "a b: a back end's name is"],
    [["--", "no-such-program"], "no program \"no-such-program\"", "Install it"],
    [["--", directory], `no program "${directory}`, "that is a directory"],
    [["--", "/no/such/program"], "no program \"/no/such/program\"", "is its path right?"],
    [["--", "sh -c true"], "no program \"sh -c true\"", "without quotes around them all"],
    [["--check", "--config", fileOf("help-words.json", { command: "npx -y a" })], "arguments belong in \"args\""],
    [["--check", "--config", fileOf("help-loop.json", { command: `${loop}/x` })], "a: there is no program"],
    [["--check", "--config", noDirectory], "no directory \"/no/place\""],
    [["--check", "--config", notExecutable], "help-mode.txt\" may not be run", "chmod +x", "name its interpreter"],
    [["--keys-file", "/no/keys", "--tls-cert", "x", "--cluster"], "/no/keys", "--tls-key FILE", "--cluster needs more"],
    [["--keys-file", Serving.file("no-keys.txt", "# none yet\n\n")], "holds no key"],
    [["--keys-file", Serving.file("no-value.txt", "ada:\n")], "has a line with a name and no key"],
    [["--auth-client-secret", "x"], "Set GATEWAY_AUTH_CLIENT_SECRET"],
    [["--host", "0.0.0.0", "--auth-issuer", "https://auth.example.com"], "needs publicUrl", "auth.audience"],
    [["--host", "0.0.0.0", "--port", "0"], "--insecure"],
    [["--host", "0x0", "--", process.execPath], "Other machines reach 0x0"],
    [["--host", "127.attacker.example"], "--insecure"],
    [["--tls-cert", "package.json", "--tls-key", "package.json"], "must be PEM"],
    [["--tls-cert", empty, "--tls-key", blank], "empty.pem and ", "one of them is empty", "must be PEM"],
    [["--check", "--tls-cert", cert, "--tls-key", empty], "empty.pem cannot be used", "one of them is empty"],
    [["--host", "192.0.2.1", "--insecure"], "Cannot listen on 192.0.2.1", "Give --host an address"],
    [["--host", "nowhere.invalid", "--insecure"], "Cannot listen on nowhere.invalid"],
    [["--port", taken], `Cannot listen on 127.0.0.1:${taken}`, "Is another gateway running?"]
  ]
  const fails = async (args: ReadonlyArray<string>, parts: ReadonlyArray<string>, env = {}) => {
    const { exit, output } = await said(args, env)
    assert.strictEqual(exit, 1)
    for (const part of parts) assert.include(output, part)
    if (args.includes("--check")) assert.notInclude(output, "--check tests")
    assert.isBelow(output.split("\n").length, 12)
    assert.notInclude(output, "    at ")
    assert.notInclude(output, "secret@")
  }
  const rows = cases.map(([args, ...parts]) => ({ args, parts }))
  it.each(rows)("the command fails and prints what to do next: $args", ({ args, parts }) => fails(args, parts))

  it.each([
    ["--auth-issuer", "https://auth.example.com", "--public-url", "https://mcp.example.com"],
    ["--proxy-header", "X-Forwarded-User", "--trusted-proxies", "10.0.0.7"]
  ])("another way to authenticate clients replaces keys on all addresses: %s", async (...flags) => {
    const checked = await printed(["--check", "--host", "0.0.0.0", ...flags, "--", process.execPath])
    assert.include(checked, "The configuration is valid")
  })

  it("a replica prints what it lacks, without the database's password", async () => {
    const known = {
      DATABASE_URL: "postgresql://me:secret@127.0.0.1:1/postgres",
      GATEWAY_STATE_KEY: "the same key on every one of the replicas"
    }
    const address = "127.0.0.1:8421"
    const noDatabase = { ...known, DATABASE_URL: "//me:secret@localhost" }
    const stateKey = "GATEWAY_STATE_KEY, a secret of at least 32 characters"
    const replica = (address: string, env: object, parts: ReadonlyArray<string>, ...more: ReadonlyArray<string>) =>
      fails(["--cluster", "--replica-address", address, "--port", "0", ...more], parts, env)
    await replica(address, {}, ["--cluster needs more", stateKey, "openssl rand -hex 32"])
    await replica("0.0.0.0:8421", known, ["cannot reach 0.0.0.0"])
    await replica("[::]:8421", known, ["cannot reach ::"])
    await replica("0:8421", known, ["cannot reach 0."])
    await replica("8421", known, ["--replica-address must be host:port"])
    await replica(
      address,
      known,
      ["must be a finite duration of at least 5 seconds"],
      "--shard-lock-expiration",
      "4 seconds"
    )
    await replica(
      address,
      known,
      ["must be a finite duration of at least 5 seconds"],
      "--shard-lock-expiration",
      "infinity"
    )
    await replica(address, known, ["The database cannot be used (Error: connect ECONNREFUSED 127.0.0.1:1)"])
    await replica(address, noDatabase, ["The database cannot be used"])
  })

  it("warns of short keys and of a keys file that others may read, without printing a key", async () => {
    const long = "k".repeat(16)
    const file = Serving.file("keys.txt", `short-1\n${long}\n`)
    const warned = async (mode: number, keys: string) => {
      chmodSync(file, mode)
      const args = ["--check", "--keys-file", file, "--", process.execPath]
      const output = await printed(args, { GATEWAY_KEYS: keys, GATEWAY_ADMIN_KEYS: keys })
      assert.notMatch(output, /short-\d/)
      return output.split("\n").filter((line) => line.startsWith("Warning: "))
    }
    const guess = "and may be guessed; `openssl rand -hex 32` makes a good key"
    assert.deepStrictEqual(await warned(0o644, "short-2,short-3"), [
      `Warning: keys: 3 of 4 keys are shorter than 16 characters ${guess}`,
      `Warning: adminKeys: 2 of 2 keys are shorter than 16 characters ${guess}`,
      `Warning: keysFile: every user of this machine may read ${file}; chmod 600 restricts it to its owner`
    ])
    assert.deepStrictEqual(await warned(0o640, long), [
      `Warning: keys: 1 of 3 keys are shorter than 16 characters ${guess}`
    ])
  })
})

describe("warnings and logs in a pipe", async () => {
  const file = Serving.file("later.json", { inputs: [], mcpServers: { later: { command: "no-such" } } })
  const { output, url } = await Serving.command(["--config", file], { ...colourless, GATEWAY_MAX_SESION: "5" })

  it.each([
    `${file}: the gateway does not read \\"inputs\\"`,
    "later: there is no program",
    "GATEWAY_MAX_SESION: unknown; did you mean GATEWAY_MAX_SESSIONS?"
  ])("the command warns at its start: %s", (warning) => Kit.eventually("it warns", () => output().includes(warning)))

  it("the command logs without colours into a pipe", async () => {
    await Kit.open(url)
    await Kit.eventually("a line is logged", () => output().includes("No session was opened"))
    assert.notInclude(output(), escape)
  })
})

describe("--completions", () => {
  it("prints a script for bash that completes flags and the choices of a flag", async () => {
    const file = Serving.file("completions.bash", await printed(["--completions", "bash"]))
    const completed = (...words: ReadonlyArray<string>) => {
      const line = ["effect-session-pool", ...words]
      const ask = `source ${file}
        COMP_LINE="${line.join(" ")}"; COMP_POINT=\${#COMP_LINE}
        COMP_WORDS=(${line.map((word) => `"${word}"`).join(" ")}); COMP_CWORD=${words.length}
        _effect_session_pool effect-session-pool "${line.at(-1)}" "${line.at(-2)}"
        echo "\${COMPREPLY[@]}"`
      return execFileSync("bash", ["-c", ask], { encoding: "utf8" }).trim()
    }
    assert.strictEqual(completed("--idle-"), "--idle-time-to-live")
    assert.strictEqual(completed("--era", ""), "auto legacy modern")
    assert.strictEqual(completed("--era", "le"), "legacy")
  })

  for (const [shell, first, check] of [["zsh", "#compdef", "-n"], ["fish", "###-begin", "--no-execute"]] as const) {
    it(`prints a script for ${shell} with every flag`, async () => {
      const output = await printed(["--completions", shell])
      assert.isTrue(output.startsWith(first))
      for (const flag of flags) assert.include(output, flag.slice(2))
      const installed = Programs.find(shell, undefined, process.env["PATH"]) !== undefined
      if (installed) execFileSync(shell, [check, Serving.file(`completions.${shell}`, output)])
    })
  }
})

describe("colours", () => {
  it.each([["--help"], ["--config", "/no/such.json"], ["--frob"], ["--version"]])(
    "output to a pipe has colours only with FORCE_COLOR and without NO_COLOR: %s",
    async (...args) => {
      assert.notInclude((await said(args)).output, escape)
      assert.include((await said(args, { FORCE_COLOR: "1" })).output, escape)
      assert.notInclude((await said(args, { FORCE_COLOR: "1", NO_COLOR: "1" })).output, escape)
    }
  )

  it("output to a terminal has colours, but not with NO_COLOR", async () => {
    const main = new URL("../../src/gateway/bin.ts", import.meta.url).pathname
    /** Runs the command on a terminal, and ends it once it has printed `until`. Returns its output. */
    const terminal = async (args: string, env: Record<string, string>, until?: string): Promise<string> => {
      const script = spawn("script", ["-qec", `${process.execPath} ${main} ${args}`, "/dev/null"], {
        env: { ...process.env, ...colourless, ...env }
      })
      const { exit, output } = Kit.follow(script)
      if (until !== undefined) {
        await Kit.eventually(`it says ${until}`, () => output().includes(until), 80)
        for (const pid of Kit.descendants(script.pid ?? 0)) Kit.kill(pid, "SIGTERM")
      }
      await exit
      return output()
    }
    // A gateway that logs a line, pretty.
    const file = fileOf("logs.json", { command: "no-such-program" })
    const kinds = [["--help"], ["--config /no/such.json"], [`--port 0 --config ${file}`, "WARN"]] as const
    for (const [args, until] of kinds) assert.include(await terminal(args, {}, until), escape, args)
    const [args, until] = kinds[2]
    assert.notInclude(await terminal(args, { NO_COLOR: "1" }, until), escape)
    // The test starts the command four times, which takes long on a busy machine.
  }, 120_000)

  it("the stream, NO_COLOR, FORCE_COLOR and TERM decide about colours", () => {
    const decide = (isTTY: boolean, env: Record<string, string>) => CommandOutput.hasColors({ isTTY }, env)
    assert.deepStrictEqual([decide(true, {}), decide(false, {})], [true, false])
    assert.isFalse(decide(true, { NO_COLOR: "1" }))
    assert.isTrue(decide(true, { NO_COLOR: "" }))
    for (const force of ["", "0", "false"]) assert.isFalse(decide(false, { FORCE_COLOR: force }))
    for (const force of ["1", "true", "3"]) assert.isTrue(decide(false, { FORCE_COLOR: force }))
    assert.isFalse(decide(true, { TERM: "dumb", FORCE_COLOR: "1" }))
  })
})

describe("programs", () => {
  it("finds a program in the PATH, or from the working directory", () => {
    const directory = Serving.directory()
    const bin = join(directory, "bin")
    const server = join(bin, "server")
    mkdirSync(bin)
    writeFileSync(server, "#!/bin/sh\n", { mode: 0o755 })
    writeFileSync(join(directory, "server"), "not executable")
    assert.strictEqual(Programs.find("server", undefined, `${directory}::${bin}`), server)
    assert.strictEqual(Programs.find("bin/server", directory), server)
    assert.isUndefined(Programs.find("server", directory))
    assert.isUndefined(Programs.find("none", directory, bin))
  })
})
