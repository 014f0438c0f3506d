/** What the command says to a person: help, faults with the next step, completions, and colours only where they are seen. */
import { execFileSync, spawn } from "node:child_process"
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as CommandOutput from "../../src/gateway/app/CommandOutput.ts"
import * as Settings from "../../src/gateway/settings/Settings.ts"
import * as Programs from "../../src/gateway/transports/Programs.ts"
import * as Command from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"

/** For a test that starts the command many times, on a busy machine. */
const slow = 120_000

const artifacts = new URL("../artifacts/", import.meta.url).pathname
const write = (name: string, content: string): string => {
  mkdirSync(artifacts, { recursive: true })
  writeFileSync(`${artifacts}${name}`, content)
  return `${artifacts}${name}`
}

/** A link to itself: looking at it is an error, as below a directory that may not be searched. */
const loop = `${artifacts}loop`
mkdirSync(artifacts, { recursive: true })
rmSync(loop, { force: true })
symlinkSync(loop, loop)

const certificate = new URL("../fixtures/tls/cert.pem", import.meta.url).pathname

/** No variable of the machine that runs the tests has a say in colours. */
const colourless = { NO_COLOR: "", FORCE_COLOR: "", TERM: "xterm" }
const said = (args: ReadonlyArray<string>, env: Record<string, string> = {}) =>
  Command.runInProcess(args, { ...colourless, ...env })
const escape = "\u001b"
const flags = Object.keys(Settings.all).filter((name) => !Settings.secret.includes(name))
  .map((name) => `--${Settings.flagName(name)}`)

describe("--help", () => {
  it("has examples whose flags there are, and defaults as a person writes them", async () => {
    const { output } = await said(["--help"])
    const examples = output.slice(output.indexOf("EXAMPLES"))
    assert.isAtLeast(examples.split("  # ").length, 5)
    for (const [flag] of examples.replace(/ -- .*/g, "").matchAll(/--[a-z-]+/g)) {
      assert.include([...flags, "--config", "--check"], flag)
    }
    assert.match(output, /--era .*choices: auto, legacy, modern/)
    // By the names that the flags have for their values.
    for (const kind of ["A duration is", "bytes as 4194304 or \"4 MiB\"", "a list with commas"]) {
      assert.include(output.replace(/\s+/g, " "), kind)
    }
    for (const fallback of ["default: 30 minutes", "default: 4 MiB", "default: 16 KiB"]) {
      assert.include(output, fallback)
    }
  })
})

describe("a fault", () => {
  const cases: ReadonlyArray<readonly [string, ReadonlyArray<string>, ReadonlyArray<string>]> = [
    ["an unknown flag", ["--frob"], ["--frob", "effect-session-pool --help"]],
    ["a choice that there is not", ["--era", "both"], ["--era", "\"auto\" | \"legacy\" | \"modern\""]],
    ["a flag that is nearly one", ["--prot", "1"], ["Did you mean", "--port"]],
    ["a key as a flag", ["--keys", "x"], ["Set GATEWAY_KEYS"]],
    ["a flag without its value", ["--port"], ["--port", "effect-session-pool --help"]],
    ["a value that cannot be", ["--port", "many"], ["an integer from 0 to 65535", "--check"]],
    ["a file that is not there", ["--config", "/no/such.json"], ["cannot be read", "NotFound", "Is the path right?"]],
    ["a directory as a file", ["--config", artifacts], ["Is it a file"]],
    ["a file that is no JSON", ["--config", write("help-broken.json", "{")], ["not JSON", "Correct it"]],
    ["a program that is not there", ["--", "no-such-program"], ["no program \"no-such-program\"", "Install it"]],
    [
      "what cannot be looked at, as a program and as a directory",
      [
        "--check",
        "--config",
        write(
          "help-loop.json",
          JSON.stringify({
            mcpServers: { a: { command: `${loop}/x` }, b: { command: "sh", cwd: `${loop}/x` } }
          })
        )
      ],
      ["a: there is no program", "b: there is no directory"]
    ],
    ["a directory as a program", ["--", artifacts], ["no program \"" + artifacts, "that is a directory"]],
    ["a path that is not there", ["--", "/no/such/program"], ["no program \"/no/such/program\"", "is its path right?"]],
    ["a command in one word", ["--", "sh -c true"], ["no program \"sh -c true\"", "without quotes around them all"]],
    [
      "a command in one word of a file",
      [
        "--check",
        "--config",
        write("help-words.json", JSON.stringify({ mcpServers: { a: { command: "npx -y server" } } }))
      ],
      ["a: there is no program \"npx -y server\"; arguments belong in \"args\""]
    ],
    [
      "a program that may not be run",
      [
        "--check",
        "--config",
        write("help-mode.json", JSON.stringify({ mcpServers: { a: { command: write("help-mode.txt", "x") } } }))
      ],
      ["help-mode.txt\" may not be run", "chmod +x", "name its interpreter"]
    ],
    [
      "a directory to run in that is not there",
      [
        "--check",
        "--config",
        write("help-cwd.json", JSON.stringify({ mcpServers: { a: { command: "sh", cwd: "/no/such/place" } } }))
      ],
      ["a: there is no directory \"/no/such/place\""]
    ],
    [
      "several files at once",
      ["--host", "0.0.0.0", "--keys-file", "/no/keys", "--tls-cert", "x.pem", "--cluster"],
      ["/no/keys cannot be read", "give --tls-key FILE", "--cluster needs more"]
    ],
    ["a name that only looks like this machine", ["--host", "127.attacker.example"], ["--insecure"]],
    ["a certificate without a key", ["--tls-cert", "x.pem"], ["TLS needs both", "give --tls-key FILE"]],
    ["a certificate that is none", ["--tls-cert", "package.json", "--tls-key", "package.json"], ["must be PEM"]],
    [
      "an empty certificate",
      ["--tls-cert", write("help-empty.pem", ""), "--tls-key", write("help-blank.pem", "\n")],
      ["The certificate ", "help-empty.pem is empty", "must be PEM"]
    ],
    [
      "an empty key of a good certificate, by --check too",
      ["--check", "--tls-cert", certificate, "--tls-key", write("help-empty.pem", "")],
      ["The certificate's key ", "help-empty.pem is empty", "must be PEM"]
    ],
    ["an address of another machine", ["--host", "192.0.2.1", "--insecure"], ["try --host 127.0.0.1"]],
    ["a host that there is not", ["--host", "nowhere.invalid", "--insecure"], [
      "nowhere.invalid\"",
      "Give --host an address"
    ]],
    ["an unknown shell", ["--completions", "dos"], ["\"bash\"", "effect-session-pool --help"]]
  ]
  for (const [what, args, parts] of cases) {
    it(`says what to do: ${what}`, async () => {
      const { exit, output } = await said(args)
      assert.strictEqual(exit, 1)
      for (const part of parts) assert.include(output, part)
      if (args.some((arg) => arg.includes("/")) && what.includes("path")) assert.notInclude(output, "PATH")
      if (args.includes("--check")) assert.notInclude(output, "--check tests")
      assert.isBelow(output.split("\n").length, 12, "and no more than a person reads")
      assert.notInclude(output, "    at ")
    })
  }

  const other = write(
    "help-other.json",
    JSON.stringify({ inputs: [], mcpServers: { node: { command: process.execPath } } })
  )

  it("refuses an unknown GATEWAY_ variable", async () => {
    for (const args of [["--check", "--config", other], ["--config", other]]) {
      const { exit, output } = await said(args, { GATEWAY_MAX_SESION: "5" })
      assert.strictEqual(exit, 1)
      assert.include(output, "GATEWAY_MAX_SESION: unknown; did you mean GATEWAY_MAX_SESSIONS?")
    }
  })

  it("warns of keys that may be guessed, and of a file of keys that others may read, without the keys", async () => {
    const long = "k".repeat(16)
    const file = write("help-keys.txt", `short-1\n${long}\n`)
    const warned = async (mode: number, keys: string) => {
      chmodSync(file, mode)
      const args = ["--check", "--keys-file", file, "--", process.execPath]
      const { exit, output } = await said(args, { GATEWAY_KEYS: keys, GATEWAY_ADMIN_KEYS: keys })
      assert.strictEqual(exit, 0)
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

  it("warns of a key that nothing reads, by --check", async () => {
    const { exit, output } = await said(["--check", "--config", other])
    assert.strictEqual(exit, 0)
    assert.include(output, `Warning: ${other}: the gateway does not read "inputs"`)
  })
})

describe("a gateway that starts with faults of its file, and logs into a pipe", () => {
  const file = write("help-later.json", JSON.stringify({ inputs: [], mcpServers: { later: { command: "no-such" } } }))
  let gateway: Kit.Run
  beforeAll(async () => {
    gateway = Kit.run(["--port", "0", "--config", file], colourless)
    await Kit.urlOf(gateway)
  })
  afterAll(async () => {
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })

  it("warns of a key that nothing reads", async () => {
    await Kit.eventually(
      "it is told",
      () => gateway.output().includes(`${file}: the gateway does not read \\"inputs\\"`)
    )
  })

  it("warns of a program that is not there: it may come later", async () => {
    await Kit.eventually("it is told", () => gateway.output().includes("later: there is no program"))
  })

  it("logs without colours", async () => {
    await Kit.open(await Kit.urlOf(gateway))
    await Kit.eventually("a line is logged", () => gateway.output().includes("No session was opened"))
    assert.notInclude(gateway.output(), escape)
  })
})

describe("--completions", () => {
  it("bash: a script that completes flags, and the choices of one", async () => {
    const { exit, output } = await said(["--completions", "bash"])
    assert.strictEqual(exit, 0)
    const file = write("completions.bash", output)
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
    it(`${shell}: a script with every flag`, async () => {
      const { exit, output } = await said(["--completions", shell])
      assert.strictEqual(exit, 0)
      assert.isTrue(output.startsWith(first))
      for (const flag of flags) assert.include(output, flag.slice(2))
      // Only where the shell is installed can it be asked.
      const installed = Programs.find(shell, undefined, process.env["PATH"]) !== undefined
      if (installed) execFileSync(shell, [check, write(`completions.${shell}`, output)])
    })
  }
})

describe("colours", () => {
  const [help, fault] = [["--help"], ["--config", "/no/such.json"]]

  it("are not in what goes into a pipe: help, version, faults", async () => {
    for (const args of [help, fault, ["--frob"], ["--version"]]) {
      assert.notInclude((await said(args)).output, escape, args.join(" "))
    }
  })

  it("are where FORCE_COLOR asks for them, but not against NO_COLOR", async () => {
    for (const args of [help, fault, ["--frob"]]) {
      assert.include((await said(args, { FORCE_COLOR: "1" })).output, escape)
      assert.notInclude((await said(args, { FORCE_COLOR: "1", NO_COLOR: "1" })).output, escape)
    }
  })

  it("are on a terminal, but not with NO_COLOR", async () => {
    const main = new URL("../../src/gateway/bin.ts", import.meta.url).pathname
    /** What the command says on a terminal, until it says so much, if it does not end by itself. */
    const terminal = async (args: string, env: Record<string, string>, until?: string): Promise<string> => {
      const script = spawn("script", ["-qec", `${process.execPath} ${main} ${args}`, "/dev/null"], {
        env: { ...process.env, ...colourless, ...env }
      })
      let output = ""
      script.stdout.on("data", (chunk) => {
        output += chunk
      })
      const closed = new Promise((resolve) => script.on("close", resolve))
      if (until !== undefined) {
        await Kit.eventually(`it says ${until}`, () => output.includes(until), 80)
        for (const pid of Kit.descendants(script.pid ?? 0)) Kit.kill(pid, "SIGTERM")
      }
      await closed
      return output
    }
    // A gateway that logs a line, pretty.
    const file = write("help-logs.json", JSON.stringify({ mcpServers: { later: { command: "no-such-program" } } }))
    const kinds = [["--help"], ["--config /no/such.json"], [`--port 0 --config ${file}`, "WARN"]] as const
    for (const [args, until] of kinds) {
      const [plain, coloured] = await Promise.all([terminal(args, { NO_COLOR: "1" }, until), terminal(args, {}, until)])
      assert.include(coloured, escape, args)
      assert.notInclude(plain, escape, args)
    }
  }, slow)

  it("go by the stream, NO_COLOR, FORCE_COLOR and TERM", () => {
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
  it("are looked for in the PATH, or from the working directory", () => {
    const directory = mkdtempSync(join(tmpdir(), "programs-"))
    const server = join(directory, "bin", "server")
    mkdirSync(dirname(server))
    writeFileSync(server, "#!/bin/sh\n", { mode: 0o755 })
    writeFileSync(join(directory, "server"), "not executable")
    assert.strictEqual(Programs.find("server", undefined, `${directory}::${dirname(server)}`), server)
    assert.strictEqual(Programs.find("bin/server", directory), server)
    assert.isUndefined(Programs.find("server", directory))
    assert.isUndefined(Programs.find("none", directory, dirname(server)))
    rmSync(directory, { recursive: true })
  })
})
