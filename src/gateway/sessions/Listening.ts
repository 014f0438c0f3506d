/** `subscriptions/listen` of a modern client in front of a legacy server (basic/patterns/subscriptions). */
import type { Scope } from "effect"
import { Cause, Deferred, Effect, Latch } from "effect"
import type { Take } from "../conversation/Exchange.ts"
import type { Handshake } from "../conversation/Handshake.ts"
import type { Lane } from "../conversation/Lane.ts"
import type { Change } from "../conversation/LaneCalls.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import type { Profile } from "./Callers.ts"

const kinds = ["tools", "prompts", "resources"] as const

/** The changes that a client wants to hear of. */
export interface Filter {
  /** The lists. */
  readonly lists: ReadonlyArray<(typeof kinds)[number]>
  /** The URIs of the resources. */
  readonly resources: ReadonlyArray<string>
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
    lists: kinds.filter((kind) => Json.field(given, `${kind}ListChanged`) === true),
    resources: [...new Set(uris)].slice(0, maxResources)
  }
}

/** A filter in the form of the specification. */
const encode = ({ lists, resources }: Filter) => ({
  ...Object.fromEntries(lists.map((kind) => [`${kind}ListChanged`, true])),
  resourceSubscriptions: resources.length > 0 ? resources : undefined
})

/** The result that ends a stream when the gateway stops. */
export const completed = (id: JsonRpc.Id): Json.JsonObject => Modern.tagged({ resultType: "complete" }, id)

/** The part of the filter that the server supports. */
const honour = ({ lists, resources }: Filter, { capabilities }: Handshake): Filter => ({
  lists: lists.filter((kind) => Json.at(capabilities, kind, "listChanged") === true),
  resources: Json.at(capabilities, "resources", "subscribe") === true ? resources : []
})

const concerns = ({ lists, resources }: Filter, { method, uri }: Change): boolean =>
  method === "notifications/resources/updated"
    ? uri !== undefined && resources.includes(uri)
    : lists.some((kind) => method === `notifications/${kind}/list_changed`)

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
  const changed = Latch.makeUnsafe()
  const listener = (change: Change) => {
    if (!concerns(wanted, change)) return
    // Keeps only the newest change of each method and URI, because it covers the earlier ones.
    changes.set(`${change.method} ${change.uri ?? ""}`, change)
    changed.openUnsafe()
  }
  yield* Effect.acquireRelease(
    Effect.sync(() => profile.listeners.add(listener)),
    () => Effect.sync(() => profile.listeners.delete(listener))
  )
  const resources = yield* lane.watchResources(wanted.resources)
  const next = Effect.raceAllFirst([
    Effect.as(changed.await, "Changed" as const),
    Effect.as(Deferred.await(draining), "Draining" as const),
    Effect.as(Deferred.await(lane.calls.retired), "Ended" as const)
  ])
  return events(id, { ...wanted, resources }, next, () => {
    const news = [...changes.values()]
    changes.clear()
    changed.closeUnsafe()
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
      return Effect.succeed([
        notification("notifications/subscriptions/acknowledged", { notifications: encode(honoured) })
      ])
    }
    return Effect.flatMap(next, (what): Take => {
      if (what === "Changed") return Effect.succeed(news().map(({ method, params }) => notification(method, params)))
      state = "over"
      // A stream that ends without an answer tells the client to subscribe again.
      return what === "Ended"
        ? Cause.done()
        : Effect.succeed([{ text: JsonRpc.result(id, completed(id)).text }])
    })
  })
}
