/**
 * The handshake of a lane. To a legacy server the gateway is the client: it opens the session with the caller's info and capabilities. A modern
 * server only describes itself.
 */
import { Effect, Option } from "effect"
import type * as Dialect from "../protocol/Dialect.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import { version as ownVersion } from "../protocol/version.ts"
import type { Transport } from "../transports/Transport.ts"
import * as PooledConnection from "./PooledConnection.ts"

/** A server's description of itself, from its handshake. */
export interface Handshake {
  readonly era: Dialect.Era
  /** In the form of revision 2026-07-28. */
  readonly capabilities: Json.JsonObject
  readonly serverInfo: unknown
  readonly instructions: unknown
}

export interface Options {
  readonly client: Modern.Client
  /** The era of the server. `undefined` if unknown; the handshake then finds it out. */
  readonly era: Dialect.Era | undefined
  /**
   * Longest wait for an answer to `server/discover`, in milliseconds. A server that does not answer counts as legacy.
   */
  readonly probeTimeout: number
}

const ownInfo = { name: "effect-session-pool", version: ownVersion }

/** The newest legacy revision. The server may answer with an earlier one. */
const legacyVersion = Modern.legacyVersions.at(-1)

/** Finds out the era of the server, unless it is known, and does the handshake of that era. `request` sends a request to the server. */
export const make = Effect.fnUntraced(function*(
  server: Transport,
  request: (method: string, params: unknown) => Effect.Effect<JsonRpc.Response>,
  { client, era, probeTimeout }: Options
) {
  const clientInfo = client.info ?? ownInfo
  const { capabilities } = client
  const ask = (method: string, params: unknown) => PooledConnection.answerOf(server, request(method, params))
  if (era !== "legacy") {
    const probe = ask("server/discover", { _meta: Modern.ownMeta(clientInfo, capabilities) })
    // A server that does not answer in time gets the legacy handshake.
    const found = era === "modern" ? yield* Effect.asSome(probe) : yield* Effect.timeoutOption(probe, probeTimeout)
    if (Option.isSome(found) && (era === "modern" || Modern.speaksModern(found.value))) {
      const result = yield* resultOf(found.value)
      return handshakeOf("modern", result, Json.at(result, "_meta", Modern.metaKeys.serverInfo))
    }
  }
  const result = yield* resultOf(
    yield* ask("initialize", { protocolVersion: legacyVersion, capabilities, clientInfo })
  )
  yield* server.send(JsonRpc.notification("notifications/initialized"))
  return handshakeOf("legacy", result, Json.field(result, "serverInfo"))
})

const resultOf = (answer: JsonRpc.Response): Effect.Effect<unknown, PooledConnection.InitializeRefused> =>
  answer.failed ? Effect.fail(new PooledConnection.InitializeRefused({ answer })) : Effect.succeed(answer.result)

const handshakeOf = (era: Dialect.Era, result: unknown, serverInfo: unknown): Handshake => {
  const capabilities = Json.objectOf(Json.field(result, "capabilities"))
  return {
    era,
    // In revision 2026-07-28 tasks are an extension with another form.
    capabilities: era === "modern" ? capabilities : { ...capabilities, tasks: undefined },
    serverInfo,
    instructions: Json.field(result, "instructions")
  }
}
