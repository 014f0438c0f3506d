/**
 * MCP on Streamable HTTP: who may come in (by host, origin and key, see `Access`), and which era a request is of. Those of the
 * revisions up to 2025-11-25 go on to `LegacyRoutes`, those of 2026-07-28 to `ModernRoutes`.
 *
 * The way of a call, here and there, is in plain functions and `flatMap`s. They took the place of a dozen generators, the lease's
 * scope became nobody's child, and a refusal is no longer made before it is needed: that took a third off the CPU of a call (240
 * to 160 µs on the machine of that day).
 */
import type { Scope } from "effect"
import { ByteSize, Cause, Effect, Option, Tracer } from "effect"
import type { HttpServerResponse } from "effect/http"
import type { HttpServerRequest } from "effect/http"
import { Headers, HttpIncomingMessage, HttpMiddleware, HttpRouter, HttpTraceContext } from "effect/http"
import * as LegacyRoutes from "../legacy/LegacyRoutes.ts"
import * as JsonRpc from "../messages/JsonRpc.ts"
import * as Modern from "../modern/Modern.ts"
import * as ModernRoutes from "../modern/ModernRoutes.ts"
import type { Carried } from "../sessions/Placement.ts"
import type { Principal } from "../sessions/Registry.ts"
import * as Masking from "../settings/Masking.ts"
import * as Access from "./Access.ts"
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

/** The handler of a route of MCP, which is to be uninterruptible, see `complete`. */
export const make = (serving: Serving, access: Access.Access) => {
  const cors = HttpMiddleware.cors({
    allowedOrigins: access.isListedOrigin,
    allowedMethods: ["GET", "POST", "DELETE"],
    // Those that are asked for: a tool may name any header after Mcp-Param-.
    exposedHeaders: ["Mcp-Session-Id", "Retry-After", "WWW-Authenticate"],
    maxAge: 600
  })
  return (path: string) => (request: Request) => {
    const answered = complete(always(admit(serving, access, path, request)))
    return request.headers["origin"] === undefined ? answered : cors(answered)
  }
}

/** Carries out a request that has come in at another replica. */
export const carryOut = (serving: Serving, carried: Carried): Effect.Effect<Response, never, Scope.Scope> =>
  Effect.flatMap(Effect.tracer, (tracer) => {
    const { backend, body, method, principal } = carried
    const headers = Headers.fromInput(carried.headers)
    const response = always(Effect.suspend(() => {
      if (!serving.sessions.running().has(backend)) return unknownBackend(serving)
      const asking = askingOf({ method, headers, source: carried }, backend, principal, carried)
      return route(serving, asking, () => receive(serving, asking, body))
    }))
    // A span only where a tracer sees it: it is one more on the way.
    return tracer === Tracer.nativeTracer ? response : Effect.withSpan(response, `forwarded ${method}`, {
      kind: "server",
      parent: Option.getOrUndefined(HttpTraceContext.w3c(headers))
    })
  })

/** Whatever happens, there is a response. */
const always = <R>(handler: Effect.Effect<Response, Refusal, R>): Effect.Effect<Response, never, R> =>
  handler.pipe(
    Effect.catch((refusal) => Effect.succeed(refusal.response)),
    Effect.catchCause((cause) =>
      Cause.hasInterruptsOnly(cause)
        ? Effect.failCause(cause)
        : Effect.as(
          Effect.logError("A request died", cause),
          jsonResponse(JsonRpc.error(null, JsonRpc.codes.internal, "Internal error"), 500)
        )
    )
  )

// ---------------------------------------------------------------------------
// Who may come in, and to what
// ---------------------------------------------------------------------------

const admit = (serving: Serving, access: Access.Access, path: string, request: Request) => {
  const { headers } = request
  const host = access.host(headers["host"])
  if (host._tag === "Refused") return turnAway(host)
  const origin = access.origin(headers["origin"])
  if (origin._tag === "Refused") return turnAway(origin)
  const client = access.client(headers["authorization"])
  if (client._tag === "Refused") return turnAway(client)
  return Effect.flatMap(HttpRouter.params, ({ backend }) => {
    const written = path.replace(":backend", backend ?? "")
    // Clients may end a URL with a slash.
    return Paths.isLiteral(written, request.url) || Paths.isLiteral(`${written}/`, request.url)
      ? dispatch(serving, request, backend, client.principal)
      : unknownBackend(serving)
  })
}

const turnAway = (verdict: Extract<Access.Verdict, { readonly _tag: "Refused" }>) =>
  refuse(verdict.status, verdict.message, { headers: Access.challengeOf(verdict) })

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
  // That of a POST is judged together with its body.
  if (request.method !== "POST" && version !== undefined && !Modern.legacyVersions.includes(version)) {
    return refuse(400, unsupported)
  }
  const asking = askingOf(request, backend, principal, undefined)
  return route(serving, asking, () => post(serving, asking, request))
}

const unknownBackend = ({ sessions }: Serving) => {
  const paths = [...sessions.running().keys()].map((name) => `/mcp/${name}`)
  return refuse(404, `There is no such back end; there are: ${paths.join(", ")}`)
}

const askingOf = (request: Incoming, backend: string, principal: Principal, carried: Carried | undefined): Asking => ({
  request,
  backend,
  principal,
  version: request.headers["mcp-protocol-version"],
  lastEventId: request.headers["last-event-id"],
  carried
})

/** By method. */
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
// POST: the body, and its era
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
      String(error.cause).includes("maxBytes exceeded")
        ? tooLarge()
        : refuse(400, "The body could not be read", { code: JsonRpc.codes.parseError })
    )
  )
}

const receive = (serving: Serving, asking: Asking, text: string): Effect.Effect<Response, Refusal, Scope.Scope> => {
  const json = JsonRpc.parse(text)
  if (Option.isNone(json)) {
    const why = JsonRpc.isTooDeep(text) ? JsonRpc.tooDeep : "no JSON"
    return refuse(400, `The body is ${why}`, { code: JsonRpc.codes.parseError })
  }
  const { headers } = asking.request
  const message = JsonRpc.classify(json.value)
  if (message !== undefined && Modern.isModern(message, headers)) {
    return Effect.andThen(
      annotate(asking, message, undefined),
      SlowAnswers.streamed(serving, asking, [message], always(ModernRoutes.post(serving, asking, message, text)))
    )
  }
  if (asking.version !== undefined && !Modern.legacyVersions.includes(asking.version)) {
    return refuse(400, unsupported, message?._tag === "Request" ? { id: message.id } : {})
  }
  if (Array.isArray(json.value) && (asking.version ?? batchVersion) <= batchVersion) {
    const messages = json.value.flatMap((each) => JsonRpc.classify(each) ?? [])
    return streamedIfSlow(serving, asking, messages, LegacyRoutes.batch(serving, asking, json.value, text))
  }
  if (message === undefined) {
    return refuse(400, "The body is no single JSON-RPC 2.0 message", { code: JsonRpc.codes.invalidRequest })
  }
  return Effect.andThen(
    annotate(asking, message, headers["mcp-session-id"] ?? "new"),
    streamedIfSlow(serving, asking, [message], LegacyRoutes.post(serving, asking, message, text))
  )
}

/**
 * `BridgeRequests` opens the early stream of a session on a process, so that it can be resumed. `SlowAnswers` does it for HTTP back
 * ends, and while a stateless session wakes.
 */
const streamedIfSlow = (
  serving: Serving,
  asking: Asking,
  messages: ReadonlyArray<JsonRpc.Message>,
  respond: Effect.Effect<Response, Refusal, Scope.Scope>
) => {
  const backend = serving.sessions.running().get(asking.backend)?.backend
  return backend?.target._tag === "Http" || backend?.settings.stateless === true
    ? SlowAnswers.streamed(serving, asking, messages, always(respond))
    : respond
}

const unsupported = `Unsupported MCP-Protocol-Version; supported: ${
  [...Modern.legacyVersions, ...Modern.supportedVersions].join(", ")
}`

// ---------------------------------------------------------------------------
// The request's span
// ---------------------------------------------------------------------------

/** By OpenTelemetry's semantic conventions for MCP; but no URI and no argument, which may be secret. */
const annotate = ({ backend, version }: Asking, message: JsonRpc.Message, session: string | undefined) =>
  Effect.annotateCurrentSpan({
    "mcp_gateway.backend": backend,
    "mcp.method.name": message._tag === "Response" ? "response" : short(message.method),
    ...(version === undefined ? {} : { "mcp.protocol.version": short(version) }),
    ...(session === undefined ? {} : { "mcp.session.id": Masking.shortId(session) }),
    ...(message._tag === "Request" ? requestAttributes(message) : {})
  })

const requestAttributes = ({ id, method, params }: JsonRpc.Request): Record<string, string> => {
  const attributes: Record<string, string> = { "jsonrpc.request.id": short(String(id)) }
  const given = JsonRpc.field(params, "name")
  const name = typeof given === "string" ? short(given) : undefined
  if (method === "tools/call") attributes["gen_ai.operation.name"] = "execute_tool"
  if (method === "tools/call" && name !== undefined) attributes["gen_ai.tool.name"] = name
  if (method === "prompts/get" && name !== undefined) attributes["gen_ai.prompt.name"] = name
  return attributes
}

/** What a client has written, cut to what a span should carry. */
const short = (text: string): string => text.slice(0, 100)
