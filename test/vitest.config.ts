import { readdirSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"
import { findChromium, findPostgres } from "./kit/programs.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

/** Returns the files to exclude if a program is missing, and prints what to install. */
const excludeWithout = (
  program: string,
  path: string | undefined,
  variable: string,
  files: string
): ReadonlyArray<string> => {
  if (path !== undefined) return []
  console.warn(`${files} is skipped, because there is no ${program}: install it, or set ${variable}.`)
  return [files]
}

const exclude = [
  ...excludeWithout("Chromium", findChromium(), "CHROMIUM_PATH", "test/gateway/page.test.ts"),
  ...excludeWithout("PostgreSQL (root also needs the user nobody)", findPostgres(), "PG_BIN", "test/replicas/*.test.ts")
]

const shared = {
  // A time-out only ends a hang, so both are long: the machine may be busy with other things.
  testTimeout: 60_000,
  hookTimeout: 120_000,
  // A worker keeps the modules that it has loaded: to load Effect anew for each file takes a second of CPU time.
  isolate: false,
  // Two more than the cores of a small machine, because many tests wait for processes.
  maxWorkers: 4,
  exclude
}

const core = {
  ...shared,
  // The examples import the package by its name, as a user does; here that is its source.
  alias: {
    "effect-session-pool/cluster": `${root}src/SessionEntity.ts`,
    "effect-session-pool": `${root}src/index.ts`
  }
}

/** Files that import `kit/long.ts`, found by their text in these two folders. `long` reruns all of their tests with `LONG=1`. */
const sized = ["test", "test/gateway"].flatMap((folder) =>
  readdirSync(`${root}${folder}`).filter((name) => name.endsWith(".test.ts")).map((name) => `${folder}/${name}`)
).filter((file) => readFileSync(`${root}${file}`, "utf8").includes("kit/long.ts"))
/** Files that only `npm run test:long` runs. */
const onlyLong = ["test/schedules.test.ts", "test/variants.test.ts"]
/** `npm run test:all` leaves out the short forms, because the long forms include them. */
const left = process.env["ALL"] === "1" ? sized : []

export default defineConfig({
  test: {
    root,
    // The command is started again and again: compiled once, a start takes 0.8 seconds instead of 1.2.
    env: { NODE_COMPILE_CACHE: `${root}node_modules/.cache/compiled` },
    // `npm test` runs `core` and `gateway`, `npm run test:long` the others. `replicas` runs after all others, so that no test takes the
    // CPU time of gateways that must renew their locks in time.
    projects: [
      {
        test: {
          ...core,
          name: "core",
          include: ["test/*.test.ts", "test/internal/*.test.ts", "src/examples/*.test.ts"],
          exclude: [...onlyLong, ...left],
          typecheck: { enabled: true, include: ["test/*.test-d.ts"], tsconfig: `${root}test/tsconfig.types.json` }
        }
      },
      { test: { ...shared, name: "gateway", include: ["test/gateway/*.test.ts"], exclude: [...exclude, ...left] } },
      { test: { ...core, name: "long", env: { LONG: "1" }, include: [...sized, ...onlyLong] } },
      {
        test: {
          ...shared,
          name: "replicas",
          // Each file runs several gateways and a database.
          maxWorkers: 1,
          include: ["test/replicas/*.test.ts"],
          sequence: { groupOrder: 1 }
        }
      }
    ]
  }
})
