import { defineConfig } from "vitest/config"

const shared = { testTimeout: 30_000, hookTimeout: 30_000 }

export default defineConfig({
  test: {
    root: new URL("..", import.meta.url).pathname,
    // One after the other: the core's tests keep every CPU busy, the gateway's talk to real processes in real time.
    projects: [
      {
        test: {
          ...shared,
          name: "core",
          include: ["test/*.test.ts", "test/internal/*.test.ts"],
          sequence: { groupOrder: 1 }
        }
      },
      { test: { ...shared, name: "gateway", include: ["test/gateway/*.test.ts"], sequence: { groupOrder: 2 } } }
    ]
  }
})
