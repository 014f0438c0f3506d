/**
 * MCP on Streamable HTTP. Checks the host and the origin of each request, authenticates its caller, and finds its era.
 * `LegacyRoutes` handles requests of the revisions up to 2025-11-25, `ModernRoutes` those of 2026-07-28.
 *
 * The path of a call uses plain functions and `flatMap`s, because generators cost CPU. Measured once: three changes
 * together took the CPU of a call from 240 to 160 µs. They removed a dozen generators, gave the lease's scope no
 * parent, and create a refusal only when it is needed.
 */
import type { Scope } from "effect"
import { ByteSize, Cause, Effect, Option, Tracer } from "effect"
import type { HttpServerResponse } from "effect/http"
import type { HttpServerRequest } from "effect/http"
import { Headers, HttpIncomingMessage, HttpMiddleware, HttpRouter, HttpTraceContext } from "effect/http"
import type { Authenticator, Challenge } from "../auth/Authenticator.ts"
import type { Hosts } from "../auth/Hosts.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import type { Carried } from "../sessions/Placement.ts"
import type { Principal } from "../sessions/Registry.ts"
import * as Masking from "../settings/Masking.ts"
import * as LegacyRoutes from "./LegacyRoutes.ts"
import * as ModernRoutes from "./ModernRoutes.ts"
import * as Paths from "./Paths.ts"
import type { Refusal } from "./Refusals.ts"
import { complete, jsonResponse, refuse } from "./Refusals.ts"
import type { Asking, Incoming, Serving } from "./Serving.ts"
import { accepts } from "./Serving.ts"
import * as SlowAnswers from "./SlowAnswers.ts"

/** The last revision with batches. */
const batchVersion = "2025-03-26"

type Response = HttpServerResponse.HttpServerResponse
type Request = HttpServerRequest.HttpServerRequest

/** Makes the handler of an MCP route. Add the route as uninterruptible, see `complete`. */
export const make = (serving: Serving, hosts: Hosts, clients: Authenticator) => {
  const cors = HttpMiddleware.cors({
    allowedOrigins: hosts.isListedOrigin,
    allowedMethods: ["GET", "POST", "DELETE"],
    // Without `allowedHeaders` a preflight allows the headers that it asks for: a tool may name any header after
    // Mcp-Param-.
    exposedHeaders: ["Mcp-Session-Id", "Retry-After", "WWW-Authenticate"],
    maxAge: 600
  })
  return (path: string) => (request: Request) => {
    const answered = complete(always(admit(serving, hosts, clients, path, request)))
    return request.headers["origin"] === undefined ? answered : cors(answered)
  }
}

/** Carries out a request that another replica received. */
export const carryOut = (serving: Serving, carried: Carried): Effect.Effect<Response, never, Scope.Scope> =>
  Effect.flatMap(Effect.tracer, (tracer) => {
    const { backend, body, method, principal } = carried
    const headers = Headers.fromInput(carried.headers)
    const response = always(Effect.suspend(() => {
      if (!serving.sessions.running().has(backend)) return unknownBackend(serving)
      const asking = askingOf({ method, headers, source: carried }, backend, principal, carried)
      return route(serving, asking, () => receive(serving, asking, body))
    }))
    // No span for the native tracer, which exports nothing: the span would only cost CPU.
    return tracer === Tracer.nativeTracer ? response : Effect.withSpan(response, `forwarded ${method}`, {
      kind: "server",
      parent: Option.getOrUndefined(HttpTraceContext.w3c(headers))
    })
  })

/** Turns refusals and defects into responses. Only an interruption still fails. */
const always = <R>(handler: Effect.Effect<Response, Refusal, R>): Effect.Effect<Response, never, R> =>
  handler.pipe(
    Effect.catch((refusal) => Effect.succeed(refusal.response)),
    Effect.catchCause((cause) =>
      Cause.hasInterruptsOnly(cause)
        ? Effect.failCause(cause)
        : Effect.as(
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

const admit = (serving: Serving, hosts: Hosts, clients: Authenticator, path: string, request: Request) => {
  const refusal = hosts.refusal(request.headers)
  if (refusal !== undefined) return turnAway(refusal)
  const client = Effect.catch(clients.authenticate(request), turnAway)
  return Effect.flatMap(client, ({ id }) =>
    Effect.flatMap(HttpRouter.params, ({ backend }) => {
      const written = path.replace(":backend", backend ?? "")
      // Some clients end the URL with a slash.
      return Paths.isLiteral(written, request.url) || Paths.isLiteral(`${written}/`, request.url)
        ? dispatch(serving, request, backend, id)
        : unknownBackend(serving)
    }))
}

const turnAway = ({ headers, message, status }: Challenge) => refuse(status, message, { headers })

const dispatch = (
  serving: Serving,
  request: Request,
  named: string | undefined,
  principal: Principal
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  const running = serving.sessions.running()
  const backend = named ?? (running.size === 1 ? [...running.keys()][0] : undefined)
  if (backend === undefined || !running.has(backend)) return unknownBackend(serving)
  const version = request.headers["mcp-protocol-version"]
  // `receive` checks the revision of a POST together with its body.
  if (request.method !== "POST" && version !== undefined && !Modern.legacyVersions.includes(version)) {
    return refuse(400, unsupported)
  }
  const asking = askingOf(request, backend, principal, undefined)
  return route(serving, asking, () => post(serving, asking, request))
}

const unknownBackend = ({ sessions }: Serving) => {
  const paths = [...sessions.running().keys()].map((name) => `/mcp/${name}`)
  return refuse(404, `This path names no back end; MCP is at: ${paths.join(", ")}`)
}

const askingOf = (request: Incoming, backend: string, principal: Principal, carried: Carried | undefined): Asking => ({
  request,
  backend,
  principal,
  version: request.headers["mcp-protocol-version"],
  lastEventId: request.headers["last-event-id"],
  carried
})

const route = (
  serving: Serving,
  asking: Asking,
  posted: () => Effect.Effect<Response, Refusal, Scope.Scope>
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  switch (asking.request.method) {
    case "POST":
      return posted()
    case "GET":
      return LegacyRoutes.listen(serving, asking)
    case "DELETE":
      return LegacyRoutes.end(serving, asking)
    default:
      return refuse(405, "Use POST, GET or DELETE", { headers: { allow: "GET, POST, DELETE" } })
  }
}

// ---------------------------------------------------------------------------
// POST: body and era
// ---------------------------------------------------------------------------

const post = (serving: Serving, asking: Asking, request: Request) => {
  if (!accepts(request, "application/json") || !accepts(request, "text/event-stream")) {
    return refuse(406, "Accept must list application/json and text/event-stream")
  }
  const contentType = request.headers["content-type"]?.split(";")[0]?.trim().toLowerCase()
  if (contentType !== "application/json") return refuse(415, "Content-Type must be application/json")
  return Effect.flatMap(bodyOf(request, serving.settings.maxBodyBytes), (text) => receive(serving, asking, text))
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

const receive = (serving: Serving, asking: Asking, text: string): Effect.Effect<Response, Refusal, Scope.Scope> => {
  const json = Json.parse(text)
  if (Option.isNone(json)) {
    const why = Json.isTooDeep(text) ? Json.tooDeep : "not JSON"
    return refuse(400, `The body is ${why}`, { code: JsonRpc.codes.parseError })
  }
  const { headers } = asking.request
  const message = JsonRpc.classify(json.value, text)
  if (message !== undefined && Modern.isModern(message, headers)) {
    return Effect.andThen(
      annotate(asking, message, undefined),
      SlowAnswers.streamed(serving, asking, [message], always(ModernRoutes.post(serving, asking, message)))
    )
  }
  if (asking.version !== undefined && !Modern.legacyVersions.includes(asking.version)) {
    return refuse(400, unsupported, message?._tag === "Request" ? { id: message.id } : {})
  }
  if (Array.isArray(json.value) && (asking.version ?? batchVersion) <= batchVersion) {
    const messages = json.value.flatMap((each) => JsonRpc.classify(each, "") ?? [])
    return streamedIfSlow(serving, asking, messages, LegacyRoutes.batch(serving, asking, json.value, text))
  }
  if (message === undefined) {
    return refuse(400, "The body is not a single JSON-RPC 2.0 message", { code: JsonRpc.codes.invalidRequest })
  }
  return Effect.andThen(
    annotate(asking, message, headers["mcp-session-id"] ?? "new"),
    streamedIfSlow(serving, asking, [message], LegacyRoutes.post(serving, asking, message))
  )
}

/**
 * Opens an early event stream for a request that waits for an HTTP back end, or for a stateless session, which may have
 * to wake first. For any other session on a process `BridgeRequests` opens it, so that the client can resume it.
 */
const streamedIfSlow = (
  serving: Serving,
  asking: Asking,
  messages: ReadonlyArray<JsonRpc.Message>,
  respond: Effect.Effect<Response, Refusal, Scope.Scope>
) => {
  const backend = serving.sessions.running().get(asking.backend)?.backend
  return backend?.target.kind === "http" || backend?.settings.stateless === true
    ? SlowAnswers.streamed(serving, asking, messages, always(respond))
    : respond
}

const unsupported = `Unsupported MCP-Protocol-Version; supported: ${
  [...Modern.legacyVersions, ...Modern.supportedVersions].join(", ")
}`

// ---------------------------------------------------------------------------
// The request's span
// ---------------------------------------------------------------------------

/** Follows OpenTelemetry's semantic conventions for MCP. Leaves out URIs and arguments, because they may be secret. */
const annotate = ({ backend, version }: Asking, message: JsonRpc.Message, session: string | undefined) =>
  Effect.annotateCurrentSpan({
    "mcp_gateway.backend": backend,
    "mcp.method.name": message._tag === "Response" ? "response" : short(message.method),
    ...(version === undefined ? {} : { "mcp.protocol.version": short(version) }),
    ...(session === undefined ? {} : { "mcp.session.id": Masking.shortId(session) }),
    ...(message._tag === "Request" ? requestAttributes(message) : {})
  })

const requestAttributes = ({ id, method, params }: JsonRpc.Request): Record<string, string> => {
  const attributes: Record<string, string> = {
    "jsonrpc.request.id": short(typeof id === "string" ? id : JsonRpc.idKey(id))
  }
  const given = Json.field(params, "name")
  const name = typeof given === "string" ? short(given) : undefined
  if (method === "tools/call") attributes["gen_ai.operation.name"] = "execute_tool"
  if (method === "tools/call" && name !== undefined) attributes["gen_ai.tool.name"] = name
  if (method === "prompts/get" && name !== undefined) attributes["gen_ai.prompt.name"] = name
  return attributes
}

/** Cuts a client's text, so that a span stays small. */
const short = (text: string): string => text.slice(0, 100)
