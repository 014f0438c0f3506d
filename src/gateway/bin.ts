#!/usr/bin/env node
/**
 * The command `effect-session-pool`: loads `main.ts`. If a package that the gateway needs is missing, prints how to install it.
 */

// SIGHUP asks for a reload. Without a listener Node ends the process at SIGHUP, and the back ends live on. This listener prevents
// that before `CommandLine.ts` adds the listener that reloads (`Signals.of("SIGHUP")`, `reloads`), and after it is removed.
process.on("SIGHUP", () => {})

// The reader of the output may end first, such as `tee`, which gets the same Ctrl-C. A write then fails. Without a listener Node
// ends the process at that error. With one, only that output is lost.
for (const output of [process.stdout, process.stderr]) output.on("error", () => {})

// This file imports nothing of Effect, because Effect may be the missing package.
const peers = ["effect", "@effect/platform-node"]

import("./app/main.ts").catch((error: unknown) => {
  const notFound = error instanceof Error && "code" in error && error.code === "ERR_MODULE_NOT_FOUND"
  const [, missing = ""] = /^Cannot find package '([^']+)'/.exec(notFound ? error.message : "") ?? []
  // Node reports every other error.
  if (!peers.includes(missing)) throw error
  process.stderr.write(
    `The gateway needs ${missing}, which is not installed. Run npm install ${missing} or, without an installation, ` +
      "npx --package effect-session-pool --package @effect/platform-node effect-session-pool\n"
  )
  process.exitCode = 1
})
