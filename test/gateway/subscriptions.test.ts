/**
 * The listen of a legacy session: cases that tests over HTTP cannot time. `faceOdd.test.ts` tests that each change is reported once,
 * that a refused subscription leaves the others alone, and that lost listens are reopened.
 */
import { assert, beforeEach, describe, it } from "@effect/vitest"
import * as Subscriptions from "../../src/gateway/transports/Subscriptions.ts"

let log: Array<string> = []
let timers: Array<{ readonly millis: number; readonly what: () => void }> = []
let subscriptions: Subscriptions.Subscriptions
beforeEach(() => {
  let last = 0
  log = []
  timers = []
  subscriptions = new Subscriptions.Subscriptions({
    open: (filter) => {
      log.push(`open ${++last} ${Object.values(filter).flatMap((part) => part ?? []).join()}`)
      return last
    },
    cancel: (number) => log.push(`cancel ${number}`),
    tell: (method, params) => log.push(`tell ${method.replace("notifications/", "")} ${Object.values(params).join()}`),
    after: (millis, what) => timers.push({ millis, what })
  })
})

const elapse = () => timers.splice(0).forEach(({ what }) => what())
const add = (...uris: ReadonlyArray<string>) =>
  uris.forEach((uri) => subscriptions.add(uri, (refused) => log.push(`${uri}: ${refused ?? "agreed"}`)))
const agree = (number: number, ...uris: ReadonlyArray<string>) =>
  subscriptions.acknowledged(number, { resourceSubscriptions: uris })
/** Compares the log since the last comparison. */
const done = (...expected: ReadonlyArray<string>) => assert.deepStrictEqual(log.splice(0), expected)

describe("the listen of a legacy session", () => {
  it("is not opened without subscriptions, or again for a server without the method", () => {
    subscriptions.start([])
    done()
    subscriptions.start(["tools"])
    subscriptions.ended(1, "Method not found", false)
    elapse()
    done("open 1 true")
  })

  it("is cancelled when the server agrees to the next one, which all waiting resources share", () => {
    add("a", "b", "c", "b")
    done("open 1 a")
    agree(1, "a")
    done("a: agreed", "open 2 a,b,c")
    agree(2, "a", "b", "c")
    done("b: agreed", "b: agreed", "c: agreed")
    elapse()
    add("a")
    done("cancel 1", "a: agreed")
  })

  it("refuses a resource that the server does not report", () => {
    add("a")
    agree(1, "a")
    add("b")
    agree(2, "a")
    assert.include(log.at(-1), "b: the server does not report")
    assert.isTrue(subscriptions.hears(2, "a"))
  })

  it("is reopened after increasing waits when it is lost, and reports possible missed changes", () => {
    subscriptions.start(["tools"])
    add("a")
    agree(1)
    agree(2, "a")
    elapse()
    log = []
    for (const listen of [2, 3]) {
      subscriptions.ended(listen, "lost", true)
      assert.isAbove(timers[0]?.millis ?? 0, 500 * (listen - 2))
      elapse()
    }
    done("open 3 true,a", "open 4 true,a")
    agree(4, "a")
    done("tell tools/list_changed ", "tell resources/updated a")
  })

  it("is open only while it is heard, and then reports what may have changed meanwhile", () => {
    subscriptions.setHeard(false)
    subscriptions.start(["tools"])
    add("a")
    done("a: agreed")
    subscriptions.setHeard(true)
    done("open 1 true,a")
    agree(1, "a")
    done("tell tools/list_changed ", "tell resources/updated a")
    add("b")
    subscriptions.setHeard(false)
    done("open 2 true,a,b", "cancel 1", "cancel 2", "b: agreed")
    subscriptions.ended(1, "late", true)
    elapse()
    done()
  })

  it("ends with its last resource, and refuses a resource that the client has unsubscribed from meanwhile", () => {
    add("a")
    subscriptions.remove("a")
    assert.strictEqual(log.at(-1), "a: the client unsubscribed in the meantime")
    agree(1, "a")
    elapse()
    assert.strictEqual(log.at(-1), "cancel 1")
    add("b")
    agree(2, "b")
    log = []
    subscriptions.remove("b")
    subscriptions.remove("b")
    done("cancel 2")
  })
})
