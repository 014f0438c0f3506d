/**
 * MCP on Streamable HTTP, for clients of all revisions. Checks the host and the origin of each request, authenticates its caller, finds
 * its era, and asks the broker. `Replies` makes responses from what the broker answers.
 *
 * The path of a call uses plain functions and `flatMap`s, because generators cost CPU. Measured once: three changes together took the CPU
 * of a call from 240 to 160 µs. They removed a dozen generators, gave the lease's scope no parent, and create a refusal only when it is
 * needed.
 */
import type { Scope } from "effect"
import { ByteSize, Cause, Effect, Option } from "effect"
import type { HttpServerRequest, HttpServerResponse } from "effect/http"
import { HttpIncomingMessage, HttpMiddleware, HttpRouter } from "effect/http"
import type { Authenticator, AuthenticatorRoute, Challenge } from "../auth/Authenticator.ts"
import type { Hosts } from "../auth/Hosts.ts"
import * as PeerOwner from "../auth/PeerOwner.ts"
import type { Principal } from "../auth/Principal.ts"
import { complete, isLiteral, jsonResponse } from "../auth/Routes.ts"
import type { Refusal } from "../conversation/Exchange.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import * as RequestHeaders from "../protocol/RequestHeaders.ts"
import type { Broker } from "../sessions/Broker.ts"
import * as Calls from "../sessions/Calls.ts"
import * as Identity from "../sessions/Identity.ts"
import * as Masking from "../settings/Masking.ts"
import type * as Settings from "../settings/Settings.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import type { Front } from "./Front.ts"
import { refuse, responseTo } from "./Refusals.ts"
import type { Asking, Web } from "./Replies.ts"
import * as Replies from "./Replies.ts"

/** The paths of MCP. The second form is for clients that recognise an MCP server by the end of its URL. */
const paths = ["/mcp/:backend", "/:backend/mcp", "/mcp"] as const

/** The last revision with batches. */
const batchVersion = "2025-03-26"

type Request = HttpServerRequest.HttpServerRequest
type Response = HttpServerResponse.HttpServerResponse
/** Fails with a refusal of the broker, or with the response to a request that HTTP itself refuses. */
type Responding<R = Scope.Scope> = Effect.Effect<Response, Refusal | Response, R>
/** What the handler of a route may use. */
type Routed = HttpRouter.RouteContext | HttpServerRequest.HttpServerRequest | Scope.Scope

/** What the front needs besides the broker. */
export interface Options {
  readonly settings: Settings.GatewaySettings
  readonly hosts: Hosts
  readonly clients: Authenticator
}

export const make = ({ clients, hosts, settings }: Options): Front<HttpRouter.HttpRouter> => ({
  name: "Streamable HTTP",
  serve: Effect.fnUntraced(function*(broker) {
    const router = yield* HttpRouter.HttpRouter
    const web: Web = { broker, settings, bodies: new Set() }
    yield* Effect.forkScoped(EventStreamBody.watch(web.bodies, settings))
    const cors = HttpMiddleware.cors({
      allowedOrigins: hosts.isListedOrigin,
      allowedMethods: ["GET", "POST", "DELETE"],
      // `allowedHeaders` is not set, so a preflight allows every header that it asks for: a tool may define any Mcp-Param-… header.
      exposedHeaders: ["Mcp-Session-Id", "Retry-After", "WWW-Authenticate"],
      maxAge: 600
    })
    const add = (path: HttpRouter.PathInput, responding: (request: Request) => Responding<Routed>) => {
      const handler = (request: Request) => {
        const answered = complete(always(responding(request)))
        return request.headers["origin"] === undefined ? answered : cors(answered)
      }
      return router.add("*", path, handler, { uninterruptible: true })
    }
    for (const { handler, path } of clients.routes ?? []) {
      yield* add(path, (request) => ofAuthenticator(hosts, handler, request))
    }
    for (const path of paths) yield* add(path, (request) => admit(web, hosts, clients, path, request))
  })
})

/** Turns refusals and defects into responses. Only an interruption still fails. */
const always = <R>(handler: Responding<R>): Effect.Effect<Response, never, R> =>
  handler.pipe(
    Effect.catch(responseTo),
    Effect.catchCause((cause) =>
      Cause.hasInterruptsOnly(cause) ? Effect.failCause(cause) : Effect.as(
        Effect.logError("A request failed with a defect; the gateway answered it with 500", cause),
        jsonResponse(
          JsonRpc.error(null, JsonRpc.codes.internal, "Internal error; the gateway's log has the cause").text,
          500
        )
      )
    )
  )

// ---------------------------------------------------------------------------
// Access, back end and method
// ---------------------------------------------------------------------------

const admit = (web: Web, hosts: Hosts, clients: Authenticator, path: string, request: Request) => {
  const refusal = hosts.refusal(request.headers)
  if (refusal !== undefined) return turnAway(refusal)
  return Effect.flatMap(HttpRouter.params, ({ backend: named }) => {
    const backend = web.broker.backendAt(named)
    return Effect.flatMap(Effect.catch(clients.authenticate(request, backend), turnAway), (principal) => {
      const written = path.replace(":backend", named ?? "")
      // Some clients end the URL with a slash.
      return backend !== undefined && (isLiteral(written, request.url) || isLiteral(`${written}/`, request.url))
        ? dispatch(web, request, backend, principal)
        : unknownBackend(web.broker)
    })
  })
}

/** Answers at a route of the authenticator. */
const ofAuthenticator = (
  hosts: Hosts,
  handler: AuthenticatorRoute["handler"],
  request: Request
): Responding<HttpServerRequest.HttpServerRequest> => {
  const refusal = hosts.refusal(request.headers)
  if (refusal !== undefined) return turnAway(refusal)
  return request.method === "GET" || request.method === "HEAD"
    ? handler
    : refuse(405, "Use GET", { headers: { allow: "GET, HEAD" } })
}

const turnAway = ({ headers, message, status }: Challenge) => refuse(status, message, { headers })

const unknownBackend = (broker: Broker) =>
  refuse(
    404,
    `This path names no back end; MCP is at: ${broker.backends().map((name) => `/mcp/${name}`).join(", ")}`
  )

const dispatch = (web: Web, request: Request, backend: string, principal: Principal): Responding => {
  const version = request.headers["mcp-protocol-version"]
  const known = Effect.suspend(() => PeerOwner.isOwnUser(request))
  const { expiresAt, id, name } = principal
  // Without the claims, because the keys of sessions keep it, also of those that sleep.
  const identity: Identity.Identity = { id, name }
  const asking: Asking = { request, client: { backend, principal: identity, known }, expiresAt, version }
  // `post` checks the revision together with the body.
  if (request.method !== "POST" && !isLegacy(version)) return refuse(400, unsupported)
  switch (request.method) {
    case "POST":
      return post(web, asking)
    case "GET":
      return listen(web, asking)
    case "DELETE":
      return Effect.flatMap(sessionOf(request), (session) => Replies.toDelete(web, asking, session))
    default:
      return refuse(405, "Use POST, GET or DELETE", { headers: { allow: "GET, POST, DELETE" } })
  }
}

const isLegacy = (version: string | undefined): boolean =>
  version === undefined || Modern.legacyVersions.includes(version)

const unsupported = `Unsupported MCP-Protocol-Version; supported: ${
  [...Modern.legacyVersions, ...Modern.supportedVersions].join(", ")
}`

/** The `Accept` header that the official clients send on every request. */
const usualAccept = "application/json, text/event-stream"

/** True if the client accepts a response of this type. */
const accepts = ({ headers }: Request, type: string): boolean =>
  headers["accept"] === usualAccept || (headers["accept"] ?? "").split(",").some((range) => {
    const [name = ""] = range.trim().toLowerCase().split(";")
    return name === type || name === "*/*" || name === `${type.split("/")[0]}/*`
  })

// ---------------------------------------------------------------------------
// GET
// ---------------------------------------------------------------------------

/** Opens the stream of messages that belong to no request, or resumes another stream. */
const listen = (web: Web, asking: Asking): Responding => {
  const { request } = asking
  if (!accepts(request, "text/event-stream")) return refuse(406, "Accept must list text/event-stream")
  const from = request.headers["last-event-id"]
  return Effect.flatMap(sessionOf(request), (session) => Replies.toListener(web, asking, session, from))
}

const sessionOf = ({ headers }: Request): Effect.Effect<string, Response> => {
  const id = headers["mcp-session-id"]
  return id
    ? Effect.succeed(id)
    : refuse(400, "The header Mcp-Session-Id is missing; send the id that initialize returned")
}

// ---------------------------------------------------------------------------
// POST: body and era
// ---------------------------------------------------------------------------

const post = (web: Web, asking: Asking): Responding => {
  const { request } = asking
  if (!accepts(request, "application/json") || !accepts(request, "text/event-stream")) {
    return refuse(406, "Accept must list application/json and text/event-stream")
  }
  const contentType = request.headers["content-type"]?.split(";")[0]?.trim().toLowerCase()
  if (contentType !== "application/json") return refuse(415, "Content-Type must be application/json")
  return Effect.flatMap(bodyOf(request, web.settings.maxBodyBytes), (text) => receive(web, asking, text))
}

const bodyOf = (request: Request, limit: number) => {
  const tooLarge = () => refuse(413, `The body is larger than ${limit} bytes`)
  if (Number(request.headers["content-length"] ?? 0) > limit) return tooLarge()
  return request.text.pipe(
    Effect.provideService(HttpIncomingMessage.MaxBodySize, ByteSize.bytes(limit)),
    Effect.catch((error) =>
      error.reason._tag === "RequestParseError" && error.reason.reason === "BodyTooLarge"
        ? tooLarge()
        : refuse(400, "The body could not be read; send the request again", { code: JsonRpc.codes.parseError })
    )
  )
}

const receive = (web: Web, asking: Asking, text: string): Responding => {
  const json = Json.parse(text)
  if (Option.isNone(json)) {
    return refuse(400, `The body is ${Json.isTooDeep(text) ? Json.tooDeep : "not JSON"}`, {
      code: JsonRpc.codes.parseError
    })
  }
  const { headers } = asking.request
  const message = JsonRpc.classify(json.value, text)
  if (message !== undefined && Modern.isModern(message, headers)) {
    return Effect.andThen(annotate(asking, message, undefined), modern(web, asking, message))
  }
  if (!isLegacy(asking.version)) {
    return refuse(400, unsupported, message?._tag === "Request" ? { id: message.id } : {})
  }
  if (Array.isArray(json.value) && (asking.version ?? batchVersion) <= batchVersion) {
    return batch(web, asking, json.value)
  }
  if (message === undefined) {
    return refuse(400, "The body is not a single JSON-RPC 2.0 message", { code: JsonRpc.codes.invalidRequest })
  }
  return Effect.andThen(
    annotate(asking, message, headers["mcp-session-id"] ?? "new"),
    // Some clients send the id of their earlier session when they initialize again. They get a new session, and the earlier one stays
    // until it expires: another client may use it, too.
    message._tag === "Request" && message.method === "initialize"
      ? Replies.toInitialize(web, asking, message)
      : Effect.flatMap(sessionOf(asking.request), (session) => Replies.toMessages(web, asking, session, [message]))
  )
}

/** Several messages in one body, which revision 2025-03-26 allows. */
const batch = (web: Web, asking: Asking, values: ReadonlyArray<unknown>): Responding => {
  const messages = values.flatMap((value) => JsonRpc.classify(value, Json.stringify(value)) ?? [])
  const invalid = { code: JsonRpc.codes.invalidRequest }
  if (messages.length === 0 || messages.length < values.length) {
    return refuse(400, "The batch is empty, or one of its elements is not a JSON-RPC 2.0 message", invalid)
  }
  if (messages.some((message) => message._tag === "Request" && message.method === "initialize")) {
    return refuse(400, "initialize must not be part of a batch; send it alone", invalid)
  }
  return Effect.flatMap(sessionOf(asking.request), (session) => Replies.toMessages(web, asking, session, messages))
}

/** A message of revision 2026-07-28. */
const modern = (web: Web, asking: Asking, message: JsonRpc.Message): Responding => {
  // Over HTTP this revision has no notifications of a client. The notification of an extension belongs to no call, so it is dropped.
  if (message._tag !== "Request") return Effect.succeed(Replies.accepted)
  const { headers } = asking.request
  const fault = Modern.versionFault(message) ??
    RequestHeaders.fault(message, headers, web.broker.paramHeaders(asking.client.backend))
  return fault === undefined ? Replies.toCall(web, asking, message) : Effect.fail(Calls.faulty(message.id, fault))
}

// ---------------------------------------------------------------------------
// The request's span
// ---------------------------------------------------------------------------

/** Follows OpenTelemetry's semantic conventions for MCP. Leaves out URIs and arguments, because they may be secret. */
const annotate = ({ client, version }: Asking, message: JsonRpc.Message, session: string | undefined) => {
  const method = message._tag === "Response" ? "response" : short(message.method)
  const attributes: Record<string, string> = { "mcp_gateway.backend": client.backend, "mcp.method.name": method }
  if (version !== undefined) attributes["mcp.protocol.version"] = short(version)
  if (session !== undefined) attributes["mcp.session.id"] = Masking.shortId(session)
  const principal = Identity.labelOf(client.principal)
  if (principal !== undefined) attributes["enduser.id"] = principal
  if (message._tag === "Request") {
    const { id, params } = message
    attributes["jsonrpc.request.id"] = short(String(JsonRpc.idKey(id)))
    if (method === "tools/call") attributes["gen_ai.operation.name"] = "execute_tool"
    const name = Json.field(params, "name")
    if (typeof name === "string" && method === "tools/call") attributes["gen_ai.tool.name"] = short(name)
    if (typeof name === "string" && method === "prompts/get") attributes["gen_ai.prompt.name"] = short(name)
  }
  return Effect.annotateCurrentSpan(attributes)
}

/** Cuts a client's text, so that a span stays small. */
const short = (text: string): string => text.slice(0, 100)
