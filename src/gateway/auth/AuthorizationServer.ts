/** Asks an OAuth authorization server: for its endpoints (RFC 8414, OpenID Connect Discovery), its keys, and the meaning of tokens. */
import type { Scope } from "effect"
import { ByteSize, Cache, Data, Effect, Exit, Option, Result, Schema, Semaphore } from "effect"
import type { HttpClientError } from "effect/http"
import { HttpClient, HttpClientRequest, HttpIncomingMessage } from "effect/http"
import * as Jose from "jose"
import * as Masking from "../settings/Masking.ts"
import type * as Settings from "../settings/Settings.ts"
import * as Hosts from "./Hosts.ts"

/** The authorization server gives no usable answer. The reason has no secret. */
export class Unavailable extends Data.TaggedError("Unavailable")<{ readonly reason: string }> {}

/** The token is not one of the authorization server. The reason completes the sentence "The access token …". */
export class InvalidToken extends Data.TaggedError("InvalidToken")<{ readonly reason: string }> {}

/** The claims of a token: the payload of a JWT, or the answer of the introspection endpoint. */
export type Claims = Readonly<Record<string, unknown>>

/** Bounds a request to the authorization server, so a slow server or a huge answer costs little. */
const limits = { time: "5 seconds", size: ByteSize.mebibytes(1) } as const
/** How many tokens the gateway asks about at once, and the longest time for a token, including the wait for its turn. */
const introspections = { most: 16, time: "10 seconds" } as const

/** The longest issuer that the log shows, in characters. */
const longestIssuer = 200

const Metadata = Schema.fromJsonString(Schema.Struct({
  issuer: Schema.String,
  jwks_uri: Schema.optionalKey(Schema.String),
  introspection_endpoint: Schema.optionalKey(Schema.String)
}))

const decodeClaims = Schema.decodeUnknownOption(Schema.fromJsonString(Schema.Record(Schema.String, Schema.Unknown)))
const decodeMetadata = Schema.decodeUnknownOption(Metadata)

/** The addresses at which a server of this issuer may publish its metadata, the preferred one first. */
const metadataUrls = (issuer: string): ReadonlyArray<string> => {
  const { origin, pathname } = new URL(issuer)
  const path = pathname.replace(/\/$/, "")
  const inserted = ["oauth-authorization-server", "openid-configuration"]
    .map((name) => `${origin}/.well-known/${name}${path}`)
  return path === "" ? inserted : [...inserted, `${origin}${path}/.well-known/openid-configuration`]
}

/** Errors of `jose` that are the token's fault. Every other error is an outage. */
const faultsOfToken: ReadonlyArray<unknown> = [
  Jose.errors.JWSInvalid.code,
  Jose.errors.JWSSignatureVerificationFailed.code,
  Jose.errors.JOSEAlgNotAllowed.code,
  Jose.errors.JOSENotSupported.code,
  Jose.errors.JWKSNoMatchingKey.code,
  Jose.errors.JWKSMultipleMatchingKeys.code
]

/** The header of a JWT. None for any other token. */
const headerOf = Option.liftThrowable(Jose.decodeProtectedHeader)

type Options = Pick<
  Settings.GatewaySettings,
  "authIssuer" | "authAlgorithms" | "authClientId" | "authClientSecret"
>

/**
 * Makes a function from a token to its claims. It verifies the signature of a JWT, and asks the server about any other token.
 * `ResourceServer` checks the claims.
 */
export const make = Effect.fnUntraced(function*(settings: Options) {
  const { authAlgorithms, authClientId, authIssuer } = settings
  const send = sender(HttpClient.withScope(yield* HttpClient.HttpClient))
  // Holds one entry. An outage is remembered for a second, so that a flood of tokens asks only once.
  const discovered = yield* Cache.makeWith((issuer: string) => discover(issuer, send), {
    capacity: 1,
    timeToLive: (exit) => Exit.isSuccess(exit) ? "1 hour" : "1 second"
  })
  const introspect = yield* introspector(settings, send)
  return (token: string) =>
    Effect.flatMap(Cache.get(discovered, authIssuer), ({ introspection, keys }) => {
      if (keys !== undefined && Option.isSome(headerOf(token))) return verify(token, keys, authAlgorithms)
      if (introspection !== undefined && authClientId !== "") return introspect(token, introspection)
      const lack = authClientId === "" ? "auth.clientId" : "an introspection_endpoint of its server"
      return Effect.fail(
        new InvalidToken({ reason: `is not a JWT, and the gateway cannot ask about it without ${lack}` })
      )
    })
})

type Send = ReturnType<typeof sender>

/** Makes a function that sends a request and reads its answer. Both are bounded by `limits`. */
const sender =
  (client: HttpClient.HttpClient.With<HttpClientError.HttpClientError, Scope.Scope>) =>
  (request: HttpClientRequest.HttpClientRequest) => {
    const failed = (reason: string) => new Unavailable({ reason: `${request.url} ${reason}` })
    return client.execute(request).pipe(
      Effect.flatMap((response) => Effect.map(response.text, (text) => ({ status: response.status, text }))),
      Effect.scoped,
      Effect.provideService(HttpIncomingMessage.MaxBodySize, limits.size),
      // The span of a request would have its headers.
      Effect.provideService(HttpClient.TracerDisabledWhen, () => true),
      Effect.mapError(({ reason }) => failed(`failed (${reason._tag})`)),
      Effect.timeoutOrElse({ duration: limits.time, orElse: () => failed(`gave no answer in ${limits.time}`) })
    )
  }

/** Asks at all addresses at once, so that one that hangs does not delay the others. */
const discover = Effect.fnUntraced(function*(issuer: string, send: Send) {
  const asked = yield* Effect.forEach(metadataUrls(issuer), (url) => Effect.result(metadataAt(url, issuer, send)), {
    concurrency: "unbounded"
  })
  const reasons = asked.flatMap((each) => Result.isFailure(each) ? [each.failure.reason] : [])
  return asked.find(Result.isSuccess)?.success ?? (yield* new Unavailable({ reason: reasons.join("; ") }))
})

const metadataAt = Effect.fnUntraced(function*(url: string, issuer: string, send: Send) {
  const { status, text } = yield* send(HttpClientRequest.get(url))
  const decoded = decodeMetadata(text)
  if (status !== 200 || Option.isNone(decoded)) {
    return yield* new Unavailable({ reason: `${url} has no metadata (status ${status})` })
  }
  const { introspection_endpoint: introspection, issuer: named, jwks_uri } = decoded.value
  if (named !== issuer) {
    const shown = Masking.printable(named.slice(0, longestIssuer))
    return yield* new Unavailable({ reason: `${url} names the issuer ${shown}, which is not exactly auth.issuer` })
  }
  const unsafe = [jwks_uri, introspection].find((each) => each !== undefined && !Hosts.isProtected(each))
  if (unsafe !== undefined) return yield* new Unavailable({ reason: `${url} names a URL that is not https` })
  return { introspection, keys: jwks_uri === undefined ? undefined : keysAt(jwks_uri, send) }
})

const keysAt = (url: string, send: Send): Jose.RemoteJWKSet =>
  Jose.createRemoteJWKSet(new URL(url), {
    [Jose.customFetch]: (url, { headers }) =>
      Effect.runPromise(send(HttpClientRequest.get(url, { headers })))
        .then(({ status, text }) => new Response(text, { status }))
  })

const verify = (token: string, keys: Jose.RemoteJWKSet, algorithms: ReadonlyArray<string>) =>
  Effect.flatMap(
    Effect.tryPromise({
      try: () => Jose.compactVerify(token, keys, { algorithms: [...algorithms] }),
      catch: (error) => {
        if (error instanceof Unavailable) return error
        return error instanceof Jose.errors.JOSEError && faultsOfToken.includes(error.code)
          ? new InvalidToken({ reason: "has no valid signature" })
          : new Unavailable({ reason: `its keys cannot be used (${String(error)})` })
      }
    }),
    ({ payload }) => {
      const claims = decodeClaims(new TextDecoder().decode(payload))
      return Option.isSome(claims) ? Effect.succeed(claims.value) : new InvalidToken({ reason: "has no claims" })
    }
  )

/** Makes a function from an opaque token to its claims, as the introspection endpoint tells them (RFC 7662). */
const introspector = Effect.fnUntraced(function*({ authClientId, authClientSecret, authIssuer }: Options, send: Send) {
  const turns = yield* Semaphore.make(introspections.most)
  const busy = () => new Unavailable({ reason: `its answers about tokens take more than ${introspections.time}` })
  return Effect.fnUntraced(function*(token: string, url: string) {
    const request = HttpClientRequest.post(url).pipe(
      HttpClientRequest.basicAuth(encodeURIComponent(authClientId), encodeURIComponent(authClientSecret)),
      HttpClientRequest.acceptJson,
      HttpClientRequest.bodyUrlParams({ token, token_type_hint: "access_token" })
    )
    const { status, text } = yield* send(request)
    const claims = decodeClaims(text)
    if (status !== 200 || Option.isNone(claims)) {
      return yield* new Unavailable({ reason: `${url} did not tell what a token means (status ${status})` })
    }
    // The server answers for itself, so `iss` is optional.
    return claims.value["active"] === true
      ? { iss: authIssuer, ...claims.value }
      : yield* new InvalidToken({ reason: "is not active" })
  }, (asking) => Effect.timeoutOrElse(turns.withPermit(asking), { duration: introspections.time, orElse: busy }))
})
