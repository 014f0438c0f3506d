import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    root: new URL("..", import.meta.url).pathname,
    include: ["test/**/*.test.ts"],
    // Where the mutation tests keep their copies of the project.
    exclude: ["**/node_modules/**", "test/artifacts/**"],
    testTimeout: 30_000,
    hookTimeout: 30_000
  }
})
