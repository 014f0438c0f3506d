/** An OAuth authorization server: metadata, keys, introspection, and tokens with any claims. */
import type { CryptoKey, JWTHeaderParameters } from "jose"
import { exportJWK, generateKeyPair, SignJWT } from "jose"
import type { IncomingMessage, ServerResponse } from "node:http"
import { createServer } from "node:http"
import { portOf } from "./gateway.ts"
import { atEnd } from "./serving.ts"

type Answer = (response: ServerResponse, body: string, request: IncomingMessage) => void

export const json = (value: unknown): Answer => (response) => {
  response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value))
}

/** An answer that never comes. */
export const silent: Answer = () => undefined

export interface TokenOptions {
  readonly key?: CryptoKey | Uint8Array
  readonly header?: JWTHeaderParameters
}

/** Starts a server. `path` is the path of its issuer. */
export const start = async (path = "") => {
  const asked: Array<string> = []
  const answers = new Map<string, Answer>()
  const server = createServer(async (request, response) => {
    let body = ""
    for await (const chunk of request) body += chunk
    asked.push(request.url ?? "")
    const answer = answers.get(request.url ?? "")
    if (answer === undefined) response.writeHead(404).end()
    else answer(response, body, request)
  }).listen(0, "127.0.0.1")
  await new Promise((resolve) => server.on("listening", resolve))
  atEnd(() => {
    server.closeAllConnections()
    server.close()
  })
  const origin = `http://127.0.0.1:${portOf(server)}`
  const issuer = `${origin}${path}`
  const metadata = {
    issuer,
    jwks_uri: `${origin}/jwks`,
    introspection_endpoint: `${origin}/introspect`
  }
  const { privateKey, publicKey } = await generateKeyPair("ES256", { extractable: true })
  const jwk = { ...await exportJWK(publicKey), kid: "first", alg: "ES256" }
  answers.set(`/.well-known/oauth-authorization-server${path}`, json(metadata)).set("/jwks", json({ keys: [jwk] }))

  /** An access token. Claims replace the usual ones, and `undefined` leaves one out. */
  const token = (claims: Record<string, unknown>, { header, key }: TokenOptions = {}): Promise<string> => {
    const now = Math.floor(Date.now() / 1000)
    return new SignJWT({ iss: issuer, sub: "ada", iat: now, exp: now + 600, ...claims })
      .setProtectedHeader({ alg: "ES256", kid: "first", ...header })
      .sign(key ?? privateKey)
  }
  return {
    issuer,
    metadata,
    jwk,
    publicKey,
    /** The paths of the requests so far. */
    asked,
    /** The answers by path. A test may replace one. */
    answers,
    token
  }
}
