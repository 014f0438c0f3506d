/** Runs the command in this process. Kills the back ends when the process exits. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as ProcessGroup from "../transports/ProcessGroup.ts"
import * as CommandLine from "./CommandLine.ts"
import * as Signals from "./Signals.ts"

// An orderly shutdown ends every back end. This line ends them after an uncaught exception too.
process.on("exit", ProcessGroup.killAll)

NodeRuntime.runMain(CommandLine.runWith(process.argv.slice(2)), {
  disableErrorReporting: true,
  teardown: Signals.teardown
})
