/** Starts the command in this process, and ends its back ends with it. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as ProcessGroup from "./backends/ProcessGroup.ts"
import * as CommandLine from "./CommandLine.ts"
import * as Signals from "./Signals.ts"

// A shutdown ends every back end. After an uncaught exception, this does.
process.on("exit", ProcessGroup.killAll)

NodeRuntime.runMain(CommandLine.runWith(process.argv.slice(2)), {
  disableErrorReporting: true,
  teardown: Signals.teardown
})
