/** The key `backend/session`: its rules. Two sessions never have the same key. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Option, Schema } from "effect"
import { SessionKey } from "../src/index.ts"

const tried = (backend: string, session: string) => Effect.runSync(Effect.exit(SessionKey.make(backend, session)))

const refusals = [
  { backend: "", session: "s", part: "backend", reason: "empty" },
  { backend: "b", session: "", part: "session", reason: "empty" },
  { backend: "", session: "", part: "backend", reason: "empty" },
  { backend: "b/c", session: "s", part: "backend", reason: "separator" },
  { backend: "/", session: "s", part: "backend", reason: "separator" },
  { backend: "b/", session: "", part: "backend", reason: "separator" }
] as const

describe("SessionKey.make", () => {
  it.effect("joins back end and session with a slash", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* SessionKey.make("everything", "2f6e"), "everything/2f6e")
    }))

  it.effect("allows a slash in the session, also at its ends", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* SessionKey.make("b", "/a//c/"), "b//a//c/")
    }))

  for (const { backend, part, reason, session } of refusals) {
    it.effect(`refuses "${backend}" and "${session}": ${part} ${reason}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(SessionKey.make(backend, session))
        assert.deepStrictEqual([error._tag, error.part, error.reason], ["InvalidSessionKey", part, reason])
        assert.include(error.message, `The ${part} of a session key ${reason === "empty" ? "is empty" : "contains"}`)
      }))
  }

  it.effect("names the wrong part and the remedy, and never the value, which may be a secret", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(SessionKey.make("secret-backend/x", "secret-session"))
      assert.include(error.message, "backend")
      assert.include(error.message, "leave it out")
      assert.notInclude(error.message, "secret")
    }))
})

describe("SessionKey.makeUnsafe", () => {
  it("makes the same key as make", () => {
    assert.deepStrictEqual(Exit.succeed(SessionKey.makeUnsafe("b", "a/b")), tried("b", "a/b"))
  })

  for (const { backend, part, reason, session } of refusals) {
    it(`throws the error of make for "${backend}" and "${session}"`, () => {
      let thrown: unknown
      try {
        SessionKey.makeUnsafe(backend, session)
      } catch (error) {
        thrown = error
      }
      assert.instanceOf(thrown, SessionKey.InvalidSessionKey)
      assert.deepStrictEqual([thrown.part, thrown.reason], [part, reason])
    })
  }
})

describe("SessionKey.backend and SessionKey.session", () => {
  it("split at the first slash", () => {
    const key = SessionKey.makeUnsafe("b", "/x/y")
    assert.deepStrictEqual([SessionKey.backend(key), SessionKey.session(key)], ["b", "/x/y"])
  })
})

describe("SessionKey.schema", () => {
  const decode = Schema.decodeUnknownOption(SessionKey.schema)

  it("decodes a key of make to the same key", () => {
    assert.deepStrictEqual(decode("b/a/b"), Option.some(SessionKey.makeUnsafe("b", "a/b")))
  })

  it("refuses strings without a slash, empty parts, and values that are no strings", () => {
    for (const input of ["", "b", "/", "b/", "/s", 1, null, undefined, {}]) {
      assert.deepStrictEqual(decode(input), Option.none(), String(input))
    }
  })

  it.effect("says that the slash is missing", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Schema.decodeUnknownEffect(SessionKey.schema)("everything"))
      assert.include(String(error), "the \"/\" is missing")
      const empty = yield* Effect.flip(Schema.decodeUnknownEffect(SessionKey.schema)("/2f6e"))
      assert.include(String(empty), "The backend of a session key is empty")
    }))
})

/** Few letters and many slashes, so collisions are likely. */
const text = Schema.Array(Schema.Literals(["a", "b", "/", "//", ""])).check(Schema.isMaxLength(4))

describe("SessionKey collisions", () => {
  it.prop("two different pairs of strings make two keys", [text, text, text, text], (parts) => {
    const [backend1, session1, backend2, session2] = parts.map((part) => part.join("")) as [
      string,
      string,
      string,
      string
    ]
    const [one, two] = [tried(backend1, session1), tried(backend2, session2)]
    if (Exit.isFailure(one) || Exit.isFailure(two)) return
    assert.strictEqual(one.value === two.value, backend1 === backend2 && session1 === session2)
  })

  it.prop("any key splits into the two parts that made it", [Schema.String, Schema.String], (parts) => {
    const [backend, session] = parts
    const key = tried(backend, session)
    const refused = backend === "" || session === "" || backend.includes("/")
    assert.strictEqual(Exit.isFailure(key), refused)
    if (Exit.isFailure(key)) return
    assert.deepStrictEqual([SessionKey.backend(key.value), SessionKey.session(key.value)], [backend, session])
  })

  it("all pairs of words of up to three characters \"a\" and \"/\" make different keys", () => {
    const words = ["", "a", "/"].flatMap((x) => ["", "a", "/"].flatMap((y) => ["", "a", "/"].map((z) => x + y + z)))
    const unique = [...new Set(words)]
    const made = unique.flatMap((backend) => unique.map((session) => tried(backend, session))).filter(Exit.isSuccess)
    assert.isAbove(made.length, 20)
    assert.strictEqual(new Set(made.map((exit) => exit.value)).size, made.length)
  })
})
