/** Tests with a pool on a counting back end, and the outcomes of their calls. */
import { assert, it } from "@effect/vitest"
import { Cause, Effect, Exit, Option } from "effect"
import type { Scope } from "effect"
import { SessionPool } from "../../../src/index.ts"
import type { Connection } from "./backend.ts"
import { makePool, type Options } from "./calls.ts"

type Made = Effect.Success<ReturnType<typeof makePool>>
export type Pool = SessionPool.SessionPool<string, Connection>

type Body = Generator<Effect.Effect<unknown, unknown, Scope.Scope>, void, never>

export const test = (name: string, body: () => Body) => it.effect(name, () => Effect.gen(body))

/** A test with a pool of its own. */
export const withPool = (name: string, options: Options, body: (made: Made) => Body) =>
  it.effect(name, () => Effect.flatMap(makePool(options), (made) => Effect.gen(() => body(made))))

export const infoOf = (pool: Pool, key: string) => Effect.map(SessionPool.info(pool, key), Option.getOrThrow)

/** How a call ended: "success", "interrupted", "died", or the reason of its `SessionPoolError`. */
export const outcomeOf = <A>(exit: Exit.Exit<A, SessionPool.SessionPoolError>): unknown => {
  if (Exit.isSuccess(exit)) return "success"
  if (Cause.hasDies(exit.cause)) return "died"
  return Option.match(Exit.findErrorOption(exit), { onNone: () => "interrupted", onSome: ({ reason }) => reason._tag })
}

/** The message of the `Error` with which a call dies. */
export const defectOf = <A, E, R>(call: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.exit(call), (exit) => {
    const defect = Exit.isFailure(exit) && Cause.hasDies(exit.cause) ? Cause.squash(exit.cause) : undefined
    assert.instanceOf(defect, Error)
    return defect.message
  })
