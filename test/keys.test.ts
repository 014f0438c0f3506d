/** Good and bad keys. Equal values name one session, different values name different sessions. */
import { assert, describe } from "@effect/vitest"
import { Data, Effect, Option } from "effect"
import { SessionKey, SessionPool } from "../src/index.ts"
import { defectOf, test } from "./kit/pool/withPool.ts"

class Device extends Data.Class<{ readonly user: string }> {}

const good: Record<string, (user: string) => unknown> = {
  "a string": (user) => user,
  "a number": (user) => user.length,
  "a SessionKey": (user) => SessionKey.makeUnsafe("shell", user),
  "a struct": (user) => ({ user, device: { os: "linux", tags: [user] } }),
  "an empty struct or array": (user) => user === "ada" ? {} : [],
  "an empty object without a prototype": (user) => user === "ada" ? Object.create(null) : user,
  "a struct with null in it": (user) => ({ user, device: null }),
  "a struct that contains itself": (user) => {
    const key: Record<string, unknown> = { user }
    key["self"] = key
    return key
  },
  "a Data class": (user) => new Device({ user }),
  "an instance that implements Equal": (user) => Option.some({ user }),
  "a Date": (user) => new Date(user.length),
  "a URL": (user) => new URL(`https://localhost/${user}`),
  "a Map": (user) => new Map([[user, new Set([user])]])
}

const bad: Record<string, (user: string) => unknown> = {
  "a URLSearchParams": (user) => new URLSearchParams({ user }),
  "a Headers": (user) => new Headers({ user }),
  "a Blob": (user) => new Blob([user]),
  "a boxed number": (user) => Object(user.length),
  "an instance without own properties": (user) => Promise.resolve(user),
  "a struct with a bad key in it": (user) => ({ path: "/", query: { params: new URLSearchParams({ user }) } }),
  "an array with a bad key in it": (user) => ["/", [new Headers({ user })]],
  "a Map with a bad key in it": (user) => new Map([["query", new Blob([user])]])
}

const make = SessionPool.make({ lookup: (_: unknown) => Effect.sync(() => ({})) })

describe("keys", () => {
  for (const [name, key] of Object.entries(good)) {
    test(`a key may be ${name}`, function*() {
      const pool = yield* make
      const get = (user: string) => SessionPool.get(pool, key(user))
      const ada = yield* get("ada")
      assert.deepStrictEqual([ada === (yield* get("ada")), ada === (yield* get("grace"))], [true, false])
    })
  }

  test("a group may not be what a key may not be", function*() {
    const pool = yield* SessionPool.make({
      lookup: Effect.succeed<string>,
      groupBy: () => new Headers(),
      groupCapacity: 1
    })
    assert.match(
      yield* defectOf(SessionPool.use(pool, "a", () => Effect.void)),
      /^SessionPool: a group contains .*Headers/
    )
  })

  for (const [name, key] of Object.entries(bad)) {
    test(`a key may not be ${name}: the defect names better keys, and does not show this one`, function*() {
      const pool = yield* make
      let closes = 0
      const close = Effect.sync(() => closes++)
      const get = SessionPool.use(pool, key("grace"), () => Effect.void)
      for (const call of [get, SessionPool.set(pool, key("grace"), {}, close)]) {
        const message = yield* defectOf(call)
        assert.match(message, /^SessionPool: a key contains .* Use a string, a struct, /)
        assert.notInclude(message, "grace")
      }
      assert.deepStrictEqual([yield* SessionPool.size(pool), closes], [0, 1])
    })
  }

  test("a group may not be a Headers: a defect says that the group is bad", function*() {
    const pool = yield* SessionPool.make({ lookup: Effect.succeed<string>, groupBy: () => new Headers() })
    assert.match(
      yield* defectOf(SessionPool.get(pool, "a")),
      /^SessionPool: a group contains an instance of Headers\. /
    )
  })
})
