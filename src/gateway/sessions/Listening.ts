/** `subscriptions/listen` of a modern client in front of a legacy server (basic/patterns/subscriptions). */
import type { Scope } from "effect"
import { Cause, Deferred, Effect } from "effect"
import type { Take } from "../conversation/Exchange.ts"
import type { Change, Handshake, Lane } from "../conversation/Lane.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import type { Profile } from "./Callers.ts"

/** The changes that a client wants to hear of. */
export interface Filter {
  readonly toolsListChanged?: true
  readonly promptsListChanged?: true
  readonly resourcesListChanged?: true
  readonly resourceSubscriptions?: ReadonlyArray<string>
}

/** The most resources that one stream may watch. The acknowledgement leaves out the others. */
const maxResources = 1000

/** The filter in a request's parameters. `undefined` if it is not valid. */
export const filterOf = (params: unknown): Filter | undefined => {
  const given = Json.field(params, "notifications")
  if (!Json.isObject(given)) return undefined
  const uris = Json.field(given, "resourceSubscriptions") ?? []
  if (!Array.isArray(uris) || !uris.every((uri) => typeof uri === "string")) return undefined
  return {
    ...(Json.field(given, "toolsListChanged") === true ? { toolsListChanged: true } : {}),
    ...(Json.field(given, "promptsListChanged") === true ? { promptsListChanged: true } : {}),
    ...(Json.field(given, "resourcesListChanged") === true ? { resourcesListChanged: true } : {}),
    ...(uris.length > 0 ? { resourceSubscriptions: [...new Set(uris)].slice(0, maxResources) } : {})
  }
}

/** The part of the filter that the server supports. */
const honour = (filter: Filter, { capabilities: can }: Handshake): Filter => {
  const listChanged = (what: string) => Json.at(can, what, "listChanged") === true
  return {
    ...(filter.toolsListChanged === true && listChanged("tools") ? { toolsListChanged: true } : {}),
    ...(filter.promptsListChanged === true && listChanged("prompts") ? { promptsListChanged: true } : {}),
    ...(filter.resourcesListChanged === true && listChanged("resources") ? { resourcesListChanged: true } : {}),
    ...(filter.resourceSubscriptions !== undefined &&
        Json.at(can, "resources", "subscribe") === true
      ? { resourceSubscriptions: filter.resourceSubscriptions }
      : {})
  }
}

const concerns = (filter: Filter, { method, uri }: Change): boolean => {
  switch (method) {
    case "notifications/tools/list_changed":
      return filter.toolsListChanged === true
    case "notifications/prompts/list_changed":
      return filter.promptsListChanged === true
    case "notifications/resources/list_changed":
      return filter.resourcesListChanged === true
    case "notifications/resources/updated":
      return uri !== undefined && filter.resourceSubscriptions?.includes(uri) === true
    default:
      return false
  }
}

/** The events of a client's stream, for the scope: the changes that the caller's lanes report. */
export const take = Effect.fnUntraced(function*(
  lane: Lane,
  profile: Profile,
  id: JsonRpc.Id,
  filter: Filter,
  draining: Deferred.Deferred<void>
): Effect.fn.Return<Take, never, Scope.Scope> {
  const wanted = honour(filter, lane.handshake)
  const changes = new Map<string, Change>()
  let wake: (() => void) | undefined
  const listener = (change: Change) => {
    if (!concerns(wanted, change)) return
    // Keeps only the newest change of each method and URI, because it covers the earlier ones.
    changes.set(`${change.method} ${change.uri ?? ""}`, change)
    wake?.()
  }
  yield* Effect.acquireRelease(
    Effect.sync(() => profile.listeners.add(listener)),
    () => Effect.sync(() => profile.listeners.delete(listener))
  )
  const { resourceSubscriptions = [], ...lists } = wanted
  const told = yield* lane.watchResources(resourceSubscriptions)
  const honoured: Filter = told.length === 0 ? lists : { ...lists, resourceSubscriptions: told }
  const changed = Effect.callback<"Changed">((resume) => {
    wake = () => {
      wake = undefined
      resume(Effect.succeed("Changed"))
    }
    if (changes.size > 0) wake()
  })
  const ended = Effect.raceFirst(
    Effect.as(Deferred.await(draining), "Draining" as const),
    Effect.as(Deferred.await(lane.retired), "Ended" as const)
  )
  return events(id, honoured, Effect.raceFirst(changed, ended), () => {
    const news = [...changes.values()]
    changes.clear()
    return news
  })
})

const events = (
  id: JsonRpc.Id,
  honoured: Filter,
  next: Effect.Effect<"Changed" | "Draining" | "Ended">,
  news: () => ReadonlyArray<Change>
): Take => {
  const notification = (method: string, params: unknown) => JsonRpc.notification(method, Modern.tagged(params, id))
  let state: "new" | "open" | "over" = "new"
  return Effect.suspend((): Take => {
    if (state === "over") return Cause.done()
    if (state === "new") {
      state = "open"
      return Effect.succeed([notification("notifications/subscriptions/acknowledged", { notifications: honoured })])
    }
    return Effect.flatMap(next, (what): Take => {
      if (what === "Changed") return Effect.succeed(news().map(({ method, params }) => notification(method, params)))
      state = "over"
      // A stream that ends without an answer tells the client to subscribe again.
      return what === "Ended"
        ? Cause.done()
        : Effect.succeed([{ text: JsonRpc.result(id, Modern.tagged({ resultType: "complete" }, id)).text }])
    })
  })
}
