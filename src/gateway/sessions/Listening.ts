/** `subscriptions/listen` of a modern client in front of a legacy server (basic/patterns/subscriptions). */
import type { Cause, Scope } from "effect"
import { Deferred, Effect, Queue } from "effect"
import type { Event, Take } from "../conversation/Exchange.ts"
import { startWith } from "../conversation/Exchange.ts"
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

/** Subscribes a client to the changes that the caller's lanes report, for the scope. Returns the events of its stream. */
export const subscribe = Effect.fnUntraced(function*(
  lane: Lane,
  profile: Profile,
  id: JsonRpc.Id,
  filter: Filter,
  draining: Deferred.Deferred<void>
): Effect.fn.Return<Take, never, Scope.Scope> {
  const wanted = honour(filter, lane.handshake)
  const notification = (method: string, params: unknown) => JsonRpc.notification(method, Modern.tagged(params, id))
  const events = yield* Queue.make<Event, Cause.Done>()
  /** The changes in the queue. Each covers later ones of the same list or resource. */
  const queued = new Set<string>()
  const listener = (change: Change) => {
    const name = `${change.method} ${change.uri ?? ""}`
    if (!concerns(wanted, change) || queued.has(name)) return
    queued.add(name)
    Queue.offerUnsafe(events, notification(change.method, change.params))
  }
  yield* Effect.acquireRelease(
    Effect.sync(() => profile.listeners.add(listener)),
    () => Effect.sync(() => profile.listeners.delete(listener))
  )
  const resources = yield* lane.watchResources(wanted.resources)
  const notifications = encode({ ...wanted, resources })
  const acknowledged = notification("notifications/subscriptions/acknowledged", { notifications })
  // A stream that ends without an answer tells the client to subscribe again.
  const ended = Effect.as(Deferred.await(lane.calls.retired), [])
  const drained = Effect.as(Deferred.await(draining), [{ text: JsonRpc.result(id, completed(id)).text }])
  yield* Effect.forkScoped(
    Effect.flatMap(
      Effect.raceFirst(drained, ended),
      (last) => Effect.andThen(Queue.offerAll(events, last), Queue.end(events))
    )
  )
  const changes = Effect.map(Queue.takeAll(events), (taken) => {
    queued.clear()
    return taken
  })
  return startWith([acknowledged], changes)
})
