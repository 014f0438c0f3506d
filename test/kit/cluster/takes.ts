/** Events for exchanges in tests. */
import { Cause, Effect } from "effect"
import type { Event, Take } from "../../../src/gateway/conversation/Exchange.ts"

/** Returns one list of events after the other, then does `last`. By default it then ends. */
export const of = (lists: ReadonlyArray<ReadonlyArray<Event>>, last: Take = Cause.done()): Take => {
  const rest = [...lists]
  return Effect.suspend(() => {
    const list = rest.shift()
    return list === undefined ? last : Effect.succeed(list)
  })
}
