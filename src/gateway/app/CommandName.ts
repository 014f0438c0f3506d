/**
 * Names a back end after its command. The name is part of the URL, so it names the server, not the `npx` that starts it.
 */

/** A program that runs another program. The other program and its arguments follow in the runner's own arguments. */
interface Runner {
  /** The first operands that run another program: `npm exec`, but not `npm start`. Absent if the runner does nothing else. */
  readonly verbs?: ReadonlyArray<string>
  /** Options of the runner that take the next argument as their value. */
  readonly valued: ReadonlyArray<string>
  /** Operands that may come before the program to run. */
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

/** An assignment of a variable, such as `NAME=value`, in the arguments of `env`. */
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
  // `-m` is not listed as taking a value: the module behind it is the program to run.
  python: { valued: ["-c", "-X", "-W"] }
}))

/** A valid name for a back end with this command. Never empty. */
export const fromCommand = (command: ReadonlyArray<string>): string => urlSafe(serverOf(command)) || "server"

/** The nearest valid name of a back end: `My-Files` for `My Files`, `Uber` for `Über`. Empty if no character is left. */
export const urlSafe = (name: string): string =>
  name.normalize("NFKD").replace(/\p{M}/gu, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+|-+$/g, "")
    .slice(0, 64)

const serverOf = ([program = "", ...args]: ReadonlyArray<string>): string => {
  const own = nameOf(program)
  // Also finds `python3.12` under `python`.
  const runner = runners.get(own.toLowerCase()) ?? runners.get(own.toLowerCase().replace(/[\d.]+$/, ""))
  const run = runner === undefined ? [] : whatItRuns(args, runner)
  // The program to run may be a runner too: `uv run python server.py`.
  return run.length === 0 ? own : serverOf(run) || own
}

/** The command that a runner runs. Empty if it runs none. */
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

/** Path parts that do not tell one server from another. Skipped if the path has another part. */
const anywhere = ["index", "main", "__main__", "dist", "build", "out", "lib", "src", "bin"]

/** The name of a program, file or package without directory, scope, version and extension. */
const nameOf = (text: string): string => {
  const names = text.replace(/^(npm|jsr|github|file):/, "").split(/[\\/]/).filter((part) => !/^\.*$/.test(part)).map((
    part
  ) => part.replace(/(?!^)[@:#[=<>~!;].*$/s, "").replace(/(?!^)\.([cm]?[jt]sx?|py|sh|exe|cmd|bat|git|tgz)$/i, ""))
  return names.findLast((name) => !anywhere.includes(name)) ?? names.at(-1) ?? ""
}
