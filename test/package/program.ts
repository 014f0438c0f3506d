/** What a stranger might write first; `npm run check:install` compiles and runs it against the installed package. */
import { Effect, Option } from "effect"
import { SessionKey, SessionPool } from "effect-session-pool"
import * as Key from "effect-session-pool/SessionKey"
import * as Pool from "effect-session-pool/SessionPool"

class Shells extends SessionPool.Service<Shells>()("app/Shells", {
  lookup: (key: SessionKey.SessionKey) =>
    Effect.acquireRelease(Effect.succeed({ key, lines: 0 }), () => Effect.sync(() => console.log("closed"))),
  idleTimeToLive: "10 minutes",
  validate: (shell) => Effect.succeed(shell.lines < 10)
}) {}

const program = Effect.gen(function*() {
  const key = yield* SessionKey.make("shell", "ada")
  yield* Shells.use(key, (shell) => Effect.sync(() => ++shell.lines))
  const lines = yield* Shells.use(key, (shell) => Effect.sync(() => ++shell.lines))
  const info = yield* Shells.info(Key.makeUnsafe("shell", "ada"))
  const requests = Option.match(info, { onNone: () => 0, onSome: ({ requestCount }) => requestCount })
  console.log(Pool.isSessionPool(yield* Shells), lines, requests)
})

await Effect.runPromise(Effect.provide(program, Shells.layer))
