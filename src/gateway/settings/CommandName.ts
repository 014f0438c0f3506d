/**
 * The name of a back end of which only its command is known. It is in the URL, so it should tell which server is there and not
 * that `npx` starts it.
 */

/** A program that runs another, whose name and arguments stand among its own. */
interface Runner {
  /** What its first operand must be, for one that does other things too: `npm exec`, but not `npm start`. */
  readonly verbs?: ReadonlyArray<string>
  /** Its options that take the next argument as their value. */
  readonly valued: ReadonlyArray<string>
  /** Operands that may come before what it runs. */
  readonly skipped?: RegExp
}

const npm = [
  "-p",
  "--package",
  "-c",
  "--call",
  "-w",
  "--workspace",
  "--registry",
  "--prefix",
  "--cache",
  "--userconfig"
]
const uv = ["--from", "--with", "--with-editable", "-p", "--python", "--directory", "--project", "--env-file"]
  .concat("--index", "--index-url", "--extra-index-url", "--extra", "--group", "--cache-dir", "--config-file")
const docker = ["-e", "--env", "--env-file", "-v", "--volume", "--mount", "-p", "--publish", "-u", "--user", "-w"]
  .concat(
    "--workdir",
    "--name",
    "--network",
    "--net",
    "--platform",
    "--entrypoint",
    "--pull",
    "-m",
    "--memory",
    "--cpus"
  )
  .concat("-l", "--label", "-h", "--hostname", "--add-host", "--tmpfs", "--cap-add", "--cap-drop", "--security-opt")
const node = [
  "-r",
  "--require",
  "--import",
  "--loader",
  "--env-file",
  "-C",
  "--conditions",
  "-e",
  "--eval",
  "-p",
  "--print"
]

/** Of a variable, as `env` takes it. */
const assignment = /^[A-Za-z_][A-Za-z0-9_]*=/

const runners = new Map<string, Runner>(Object.entries({
  npx: { valued: npm },
  npm: { verbs: ["exec", "x"], valued: npm },
  pnpx: { valued: npm },
  pnpm: { verbs: ["dlx", "exec"], valued: [...npm, "-C", "--dir"] },
  yarn: { verbs: ["dlx", "exec"], valued: npm },
  bunx: { valued: npm },
  bun: { verbs: ["x", "run"], valued: [...npm, ...node, "--cwd"] },
  uvx: { valued: uv },
  uv: { verbs: ["run", "tool run"], valued: uv },
  pipx: { verbs: ["run"], valued: ["--spec", "--python", "--pip-args", "-i", "--index-url"] },
  deno: { verbs: ["run"], valued: ["-c", "--config", "--import-map", "--env-file"] },
  docker: { verbs: ["run"], valued: docker },
  podman: { verbs: ["run"], valued: docker },
  node: { valued: node },
  tsx: { valued: node },
  env: { valued: ["-u", "--unset", "-C", "--chdir", "--argv0", "-a"], skipped: assignment },
  // After `-m` comes the module, as what is run.
  python: { valued: ["-c", "-X", "-W"] }
}))

/** Never empty, and one that a back end may have. */
export const fromCommand = (command: ReadonlyArray<string>): string => urlSafe(serverOf(command)) || "server"

/** The nearest name that a back end may have: `My-Files` for `My Files`, `Uber` for `Über`; empty if nothing is left. */
export const urlSafe = (name: string): string =>
  name.normalize("NFKD").replace(/\p{M}/gu, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+|-+$/g, "")
    .slice(0, 64)

const serverOf = ([program = "", ...args]: ReadonlyArray<string>): string => {
  const own = nameOf(program)
  // `python3.12` is Python too.
  const runner = runners.get(own.toLowerCase()) ?? runners.get(own.toLowerCase().replace(/[\d.]+$/, ""))
  const run = runner === undefined ? [] : whatItRuns(args, runner)
  // What is run may be a runner: `uv run python server.py`.
  return run.length === 0 ? own : serverOf(run) || own
}

/** The command that a runner runs; empty if it runs none. */
const whatItRuns = (args: ReadonlyArray<string>, { skipped, valued, verbs = [""] }: Runner): ReadonlyArray<string> => {
  const said: Array<string> = []
  for (let at = 0; at < args.length; at++) {
    const arg = args[at] ?? ""
    if (valued.includes(arg)) at++
    else if (!arg.startsWith("-") && skipped?.test(arg) !== true) {
      if (verbs.includes(said.join(" "))) return args.slice(at)
      said.push(arg)
    }
  }
  return []
}

/** What says nothing about which server it is, where it is one. */
const anywhere = ["index", "main", "__main__", "dist", "build", "out", "lib", "src", "bin"]

/** Of a program, a file or a package: without directory, scope, version and ending. */
const nameOf = (text: string): string => {
  const names = text.replace(/^(npm|jsr|github|file):/, "").split(/[\\/]/).filter((part) => !/^\.*$/.test(part)).map((
    part
  ) => part.replace(/(?!^)[@:#[=<>~!;].*$/s, "").replace(/(?!^)\.([cm]?[jt]sx?|py|sh|exe|cmd|bat|git|tgz)$/i, ""))
  return names.findLast((name) => !anywhere.includes(name)) ?? names.at(-1) ?? ""
}
