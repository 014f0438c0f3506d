#!/usr/bin/env node
/**
 * The command `effect-session-pool`: loads what `main.ts` does, and says in a sentence what to install where that lacks a
 * package which the library alone can do without.
 */

// SIGHUP asks for a reload. Without a listener Node ends the process, and the back ends live on; so there is one from here to the
// end. `CommandLine.ts` adds the one that reloads (`Signals.of("SIGHUP")`, `reloads`).
process.on("SIGHUP", () => {})

// Whoever reads what is written here may go: a log's reader, or `tee`, which gets the same Ctrl-C. What is written then is lost,
// which is no reason to end; without a listener Node does.
for (const output of [process.stdout, process.stderr]) output.on("error", () => {})

// Nothing of Effect here: it may be what is missing.
const peers = ["effect", "@effect/platform-node"]

import("./main.ts").catch((error: unknown) => {
  const notFound = error instanceof Error && "code" in error && error.code === "ERR_MODULE_NOT_FOUND"
  const [, missing = ""] = /^Cannot find package '([^']+)'/.exec(notFound ? error.message : "") ?? []
  // Node tells of everything else, as if nothing stood in between.
  if (!peers.includes(missing)) throw error
  process.stderr.write(
    `The gateway needs ${missing}, which is not installed: npm install ${missing} or, with nothing installed, ` +
      "npx --package effect-session-pool --package @effect/platform-node effect-session-pool\n"
  )
  process.exitCode = 1
})
