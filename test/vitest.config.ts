import { defineConfig } from "vitest/config"

const shared = { testTimeout: 30_000, hookTimeout: 30_000 }

const root = new URL("..", import.meta.url).pathname

const replicas = "test/gateway/cluster*.test.ts"

export default defineConfig({
  test: {
    root,
    // The command is started again and again: compiled once, a start takes 0.8 seconds instead of 1.2.
    env: { NODE_COMPILE_CACHE: `${root}node_modules/.cache/compiled` },
    // One after the other: the core's tests keep every CPU busy, the gateway's talk to real processes in real time, and a test with
    // replicas runs a dozen processes and a database.
    projects: [
      {
        test: {
          ...shared,
          name: "core",
          // Without time of their own they can share the machine.
          maxWorkers: 2,
          // The examples import the package by its name, as a user does; here that is its source.
          alias: {
            "effect-session-pool/cluster": `${root}src/SessionEntity.ts`,
            "effect-session-pool": `${root}src/index.ts`
          },
          include: ["test/*.test.ts", "test/internal/*.test.ts"],
          typecheck: { enabled: true, include: ["test/*.test-d.ts"], tsconfig: `${root}tsconfig.json` },
          sequence: { groupOrder: 1 }
        }
      },
      {
        test: {
          ...shared,
          name: "gateway",
          // Half of the time they wait.
          maxWorkers: 2,
          include: ["test/gateway/*.test.ts"],
          exclude: [replicas],
          sequence: { groupOrder: 2 }
        }
      },
      { test: { ...shared, name: "replicas", include: [replicas], sequence: { groupOrder: 3 } } }
    ]
  }
})
