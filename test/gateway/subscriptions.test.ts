/** One listen for all that a session wants to hear of: none is given up before the next one has begun. */
import { assert, describe, it } from "@effect/vitest"
import * as Subscriptions from "../../src/gateway/transports/Subscriptions.ts"

const setup = () => {
  const log: Array<string> = []
  const timers: Array<{ readonly millis: number; readonly what: () => void }> = []
  let last = 0
  const subscriptions = Subscriptions.make({
    open: (filter) => {
      log.push(`open ${++last} ${JSON.stringify(filter)}`)
      return last
    },
    cancel: (number) => log.push(`cancel ${number}`),
    tell: (method, params) => log.push(`tell ${method.replace("notifications/", "")} ${JSON.stringify(params)}`),
    after: (millis, what) => timers.push({ millis, what })
  })
  return {
    subscriptions,
    timers,
    /** What has been done since it was last asked. */
    done: () => log.splice(0),
    elapse: () => timers.splice(0).forEach(({ what }) => what()),
    add: (uri: string) => subscriptions.add(uri, (refused) => log.push(`${uri}: ${refused ?? "agreed"}`)),
    agree: (number: number, ...uris: ReadonlyArray<string>) =>
      subscriptions.acknowledged(number, { resourceSubscriptions: uris })
  }
}

describe("subscriptions of a legacy session", () => {
  it("nothing to hear of is no listen", () => {
    const { done, subscriptions } = setup()
    subscriptions.start({})
    assert.deepStrictEqual(done(), [])
  })

  it("a resource is agreed on when the server has begun to tell of it; then the old listen is given up", () => {
    const { add, agree, done, elapse, subscriptions } = setup()
    subscriptions.start({ toolsListChanged: true })
    agree(1)
    add("a")
    assert.deepStrictEqual(done(), [
      "open 1 {\"toolsListChanged\":true}",
      "open 2 {\"toolsListChanged\":true,\"resourceSubscriptions\":[\"a\"]}"
    ])
    agree(2, "a")
    assert.deepStrictEqual(done(), ["a: agreed"])
    elapse()
    assert.deepStrictEqual(done(), ["cancel 1"])
    add("a")
    assert.deepStrictEqual(done(), ["a: agreed"])
  })

  it("wishes that come while one is being opened share the next", () => {
    const { add, agree, done } = setup()
    for (const uri of ["a", "b", "c", "b"]) add(uri)
    assert.deepStrictEqual(done(), ["open 1 {\"resourceSubscriptions\":[\"a\"]}"])
    agree(1, "a")
    assert.deepStrictEqual(done(), ["a: agreed", "open 2 {\"resourceSubscriptions\":[\"a\",\"b\",\"c\"]}"])
    agree(2, "a", "b", "c")
    assert.deepStrictEqual(done(), ["b: agreed", "b: agreed", "c: agreed"])
  })

  it("a change that both listens tell of is told once, and one that a single listen tells of, too", () => {
    const { add, agree, elapse, subscriptions } = setup()
    add("a")
    agree(1, "a")
    assert.isTrue(subscriptions.hears(1, "a"))
    add("b")
    assert.isTrue(subscriptions.hears(1, "a"))
    assert.isFalse(subscriptions.hears(2, "a"), "before it has begun")
    agree(2, "a", "b")
    assert.deepStrictEqual([1, 2, 2, 1].map((listen) => subscriptions.hears(listen, "a")), [true, false, true, false])
    assert.deepStrictEqual([2, 1].map((listen) => subscriptions.hears(listen, "b")), [true, false])
    elapse()
    assert.isFalse(subscriptions.hears(1, "a"))
    assert.isTrue(subscriptions.hears(2, "a"))
  })

  it("what the server does not tell of, or refuses, is refused; the rest stays", () => {
    const { add, agree, done, subscriptions } = setup()
    add("a")
    agree(1, "a")
    add("b")
    agree(2, "a")
    assert.include(done().at(-1), "b: the server does not report")
    add("c")
    subscriptions.ended(3, "forbidden", true)
    assert.strictEqual(done().at(-1), "c: forbidden")
    assert.isTrue(subscriptions.hears(2, "a"))
  })

  it("a lost listen is opened anew, and what may have been missed is told", () => {
    const { add, agree, done, elapse, subscriptions, timers } = setup()
    subscriptions.start({ toolsListChanged: true })
    agree(1)
    add("a")
    agree(2, "a")
    elapse()
    done()
    subscriptions.ended(2, "lost", true)
    elapse()
    assert.deepStrictEqual(done(), ["open 3 {\"toolsListChanged\":true,\"resourceSubscriptions\":[\"a\"]}"])
    subscriptions.ended(3, "lost", true)
    assert.isAbove(timers[0]?.millis ?? 0, 500, "each time later")
    elapse()
    done()
    agree(4, "a")
    assert.deepStrictEqual(done(), ["tell tools/list_changed {}", "tell resources/updated {\"uri\":\"a\"}"])
  })

  it("a server that knows no listens is asked once", () => {
    const { done, elapse, subscriptions } = setup()
    subscriptions.start({ toolsListChanged: true })
    subscriptions.ended(1, "Method not found", false)
    elapse()
    assert.deepStrictEqual(done(), ["open 1 {\"toolsListChanged\":true}"])
  })

  it("the last one that leaves ends it", () => {
    const { add, agree, done, subscriptions } = setup()
    add("a")
    agree(1, "a")
    done()
    subscriptions.remove("a")
    assert.deepStrictEqual(done(), ["cancel 1"])
    subscriptions.remove("a")
    assert.deepStrictEqual(done(), [])
  })

  it("one that leaves before it was agreed on is told so", () => {
    const { add, agree, done, elapse, subscriptions } = setup()
    add("a")
    subscriptions.remove("a")
    assert.strictEqual(done().at(-1), "a: the client unsubscribed in the meantime")
    agree(1, "a")
    elapse()
    assert.deepStrictEqual(done(), ["cancel 1"])
  })
})
