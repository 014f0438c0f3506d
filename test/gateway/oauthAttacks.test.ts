/** Attacks on the check of access tokens: forged tokens, and authorization servers that hang, flood or lie. */
import { Effect } from "effect"
import { FetchHttpClient } from "effect/http"
import { exportJWK, exportSPKI, generateKeyPair } from "jose"
import { assert, describe, it } from "vitest"
import { make } from "../../src/gateway/auth/AuthorizationServer.ts"
import * as AuthorizationServer from "../kit/gateway/authorizationServer.ts"
import * as Collector from "../kit/gateway/collector.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const backends = { counter: Kit.counter() }
/** Asks without starting a process: the gateway answers 406 to a caller that it accepts. */
const ask = (url: string, token: string) => fetch(url, { headers: { ...Kit.bearer(token), accept: "text/html" } })
const accepted = 406

const encode = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url")

describe("forged tokens", async () => {
  const server = await AuthorizationServer.start()
  const { url } = await Serving.gateway({ backends, auth: { issuer: server.issuer } })
  const token = (claims = {}, options = {}) => server.token({ aud: url, ...claims }, options)
  const now = Math.floor(Date.now() / 1000)
  const claims = { iss: server.issuer, sub: "ada", aud: url, exp: now + 600 }
  const { privateKey: foreign, publicKey } = await generateKeyPair("ES256", { extractable: true })
  const pem = new TextEncoder().encode(await exportSPKI(server.publicKey))
  const publicJwk = new TextEncoder().encode(JSON.stringify(server.jwk))
  const hmac = { header: { alg: "HS256" } }
  const genuine = await token()
  const [head = "", , signature = ""] = genuine.split(".")

  it("a genuine token is accepted, so the others are refused for their faults", async () => {
    assert.strictEqual((await ask(url, genuine)).status, accepted)
  })

  const signed = "The access token has no valid signature"
  const cases: ReadonlyArray<readonly [what: string, token: string, message: string | undefined]> = [
    ["with alg none", `${encode({ alg: "none" })}.${encode(claims)}.`, signed],
    [
      "with alg None and a signature",
      `${encode({ alg: "None", kid: "first" })}.${encode(claims)}.${signature}`,
      signed
    ],
    ["with the public key as the secret of HMAC", await token({}, { ...hmac, key: pem }), signed],
    ["with the JWK as the secret of HMAC", await token({}, { ...hmac, key: publicJwk }), signed],
    ["signed by another issuer's key of the same kid", await token({}, { key: foreign }), signed],
    [
      "with its own key in the header",
      await token({}, { key: foreign, header: { alg: "ES256", jwk: await exportJWK(publicKey) } }),
      signed
    ],
    [
      "with other claims behind the same signature",
      `${head}.${encode({ ...claims, sub: "root" })}.${signature}`,
      signed
    ],
    ["of another issuer", await token({ iss: "https://other.example" }), "The access token is of another issuer"],
    ["without an issuer", await token({ iss: undefined }), "The access token is of another issuer"],
    ["for another server", await token({ aud: "https://other.example" }), undefined],
    ["for a server whose URL begins alike", await token({ aud: `${url}/other` }), undefined],
    ["without an audience", await token({ aud: undefined }), undefined],
    ["that has expired", await token({ exp: now - 60 }), "The access token has expired"],
    ["that never expires", await token({ exp: undefined }), "The access token has no exp, and so never expires"],
    ["that is not valid yet", await token({ nbf: now + 60 }), "The access token is not valid yet"],
    ["of no subject", await token({ sub: undefined }), "The access token has neither sub nor client_id"],
    ["that is no JWT", "opaque", undefined]
  ]
  it.each(cases)("a token %s gets 401 with invalid_token", async (_, forged, message) => {
    const response = await ask(url, forged)
    const challenge = response.headers.get("www-authenticate") ?? ""
    assert.strictEqual(response.status, 401)
    assert.match(challenge, /^Bearer error="invalid_token", /)
    const { error } = await response.json()
    if (message !== undefined) assert.strictEqual(error.message, message)
    if (forged !== "opaque") assert.notInclude(JSON.stringify(error) + challenge, forged)
  })

  it("a token elsewhere than in Authorization counts for nothing", async () => {
    const elsewhere: ReadonlyArray<readonly [string, Record<string, string>]> = [
      [`${url}?access_token=${genuine}`, {}],
      [url, { cookie: `access_token=${genuine}` }],
      [url, { "x-api-key": genuine }],
      [url, { authorization: `Basic ${genuine}` }]
    ]
    for (const [at, headers] of elsewhere) {
      const response = await fetch(at, { headers })
      assert.strictEqual(response.status, 401)
      assert.notInclude(response.headers.get("www-authenticate"), "error=")
    }
  })

  it("a token for another port of this machine is refused, also if the request names that port", async () => {
    const other = "localhost:9999"
    const shown = { host: other, ...Kit.bearer(await token({ aud: `http://${other}/mcp` })) }
    const { status, text } = await Serving.ask(url, "/mcp", shown, "GET")
    assert.strictEqual(status, 401)
    assert.include(text, `its aud must have http://localhost:${new URL(url).port} or`)
  })

  it("a flood of unknown kids does not fetch the keys for each", async () => {
    const flood = Array.from({ length: 30 }, (_, i) => token({}, { header: { alg: "ES256", kid: `unknown-${i}` } }))
    const answers = await Promise.all((await Promise.all(flood)).map((each) => ask(url, each)))
    assert.deepStrictEqual(new Set(answers.map(({ status }) => status)), new Set([401]))
    // A second time if 30 seconds have passed since the first.
    assert.isAtMost(server.asked.filter((path) => path === "/jwks").length, 2)
  })
})

describe("an authorization server that fails", () => {
  const metadataPath = "/.well-known/oauth-authorization-server"
  /** A gateway with such a server, and the answer to a token that would be valid. */
  const failing = async (
    fail: (server: Awaited<ReturnType<typeof AuthorizationServer.start>>) => void,
    kind: "JWT" | "opaque" = "JWT"
  ) => {
    const server = await AuthorizationServer.start()
    fail(server)
    const auth = { issuer: server.issuer, clientId: "gateway", clientSecret: "secret" }
    const { origin, url } = await Serving.gateway({ backends, auth })
    const token = kind === "JWT" ? await server.token({ aud: url }) : "opaque"
    const started = Date.now()
    const response = await ask(url, token)
    assert.deepStrictEqual([response.status, response.headers.get("retry-after")], [503, "5"])
    assert.isBelow(Date.now() - started, 20_000)
    // Clients still find the authorization server.
    assert.strictEqual((await fetch(`${origin}/.well-known/oauth-protected-resource`)).status, 200)
    return { response, server, url, token }
  }

  it("a silent server costs a caller five seconds and 503: its metadata, keys or introspection", async () => {
    await Promise.all([
      failing(({ answers }) => {
        for (const name of ["oauth-authorization-server", "openid-configuration"]) {
          answers.set(`/.well-known/${name}`, AuthorizationServer.silent)
        }
      }),
      failing(({ answers }) => void answers.set("/jwks", AuthorizationServer.silent)),
      failing(({ answers }) => void answers.set("/introspect", AuthorizationServer.silent), "opaque")
    ])
  })

  it.each([
    ["keys", "/jwks"],
    ["metadata", metadataPath]
  ])("50 MB of %s are not read to their end", async (_, path) => {
    let sent = 0
    await failing(({ answers }) =>
      void answers.set(path, (response) => {
        const chunk = Buffer.alloc(100_000, " ")
        const send = () => {
          while (sent < 50_000_000 && !response.destroyed) {
            sent += chunk.length
            if (!response.write(chunk)) return void response.once("drain", send)
          }
          response.end("{}")
        }
        response.writeHead(200, { "content-type": "application/json" })
        send()
      })
    )
    assert.isBelow(sent, 25_000_000)
  })

  const lies: ReadonlyArray<readonly [what: string, changed: Record<string, string>]> = [
    ["metadata of another issuer", { issuer: "https://other.example" }],
    ["metadata of its issuer with a slash more", { issuer: "slash" }],
    ["keys on plain HTTP of another machine", { jwks_uri: "http://keys.example/jwks" }],
    ["introspection on plain HTTP of another machine", { introspection_endpoint: "http://keys.example/" }]
  ]
  it.each(lies)("a server is not used with %s", async (_, changed) => {
    await failing(({ answers, issuer, metadata }) => {
      const more = changed["issuer"] === "slash" ? { issuer: `${issuer}/` } : changed
      answers.set(metadataPath, AuthorizationServer.json({ ...metadata, ...more }))
    })
  })

  it("an issuer that differs in a slash is shown, so that the operator can copy it", async () => {
    const { issuer } = await AuthorizationServer.start()
    const settings = { authIssuer: `${issuer}/`, authAlgorithms: ["ES256"], authClientId: "", authClientSecret: "" }
    const asked = Effect.flatMap(make(settings), (claimsOf) => claimsOf("a token"))
    const error = await Effect.runPromise(Effect.flip(asked).pipe(Effect.provide(FetchHttpClient.layer)))
    assert.include(error.reason, `names the issuer ${issuer}, which is not exactly auth.issuer`)
  })

  it("a server is used again after its outage, and found by OpenID Connect Discovery too", async () => {
    const { server, token, url } = await failing(({ answers }) => void answers.delete(metadataPath))
    server.answers.set("/.well-known/openid-configuration", AuthorizationServer.json(server.metadata))
    await Kit.eventually("the token is accepted", async () => (await ask(url, token)).status === accepted)
  })

  it("a redirect of the keys is not followed", async () => {
    const { server } = await failing(({ answers, issuer }) =>
      void answers.set("/jwks", (response) => void response.writeHead(302, { location: `${issuer}/elsewhere` }).end())
    )
    assert.notInclude(server.asked, "/elsewhere")
  })
})

it("no token, key or client secret reaches a back end, the log, the page or a span", async () => {
  const server = await AuthorizationServer.start()
  const collector = await Collector.start()
  const received: Array<string> = []
  const remote = await Serving.upstream((response, { id }, { headers }, body) => {
    received.push(JSON.stringify(headers) + body)
    Serving.initialized(response, id)
  })
  server.answers.set("/introspect", (response) => void response.writeHead(500).end())
  const [key, adminKey, secret] = ["named-key-0123456789", "operators-key-0123456789", "client-secret-0123456789"]
  const { child, exit, origin, output } = await Serving.command(
    ["--config", Serving.file("servers.json", { mcpServers: { remote: { url: remote }, local: Kit.counter() } })]
      .concat("--auth-issuer", server.issuer, "--auth-client-id", "gateway", "--log-level", "trace"),
    {
      GATEWAY_KEYS: `ada:${key}`,
      GATEWAY_ADMIN_KEYS: adminKey,
      GATEWAY_AUTH_CLIENT_SECRET: secret,
      OTEL_EXPORTER_OTLP_ENDPOINT: collector.url
    }
  )
  const token = await server.token({ aud: origin })
  const forged = `${token.slice(0, -8)}AAAAAAAA`
  const ways = [Kit.bearer(token), Kit.bearer(key), { "x-api-key": key }]
  const statuses = async (headers: Record<string, string>) =>
    Promise.all(
      ["remote", "local"].map(async (name) => (await Kit.initialize(`${origin}/mcp/${name}`, headers)).status)
    )
  for (const headers of ways) assert.deepStrictEqual(await statuses(headers), [200, 200])
  assert.deepStrictEqual(await statuses(Kit.bearer(forged)), [401, 401])
  assert.deepStrictEqual(await statuses(Kit.bearer("opaque-0123456789")), [503, 503])
  await fetch(`${origin}/mcp/local?access_token=${token}`)
  await Kit.eventually("the outage is logged", () => output().includes("The authorization server cannot be used"))
  const page = await (await fetch(`${origin}/sessions`, { headers: Kit.bearer(adminKey) })).text()
  assert.include(page, "\"ada\"")
  assert.isAtLeast(received.length, 3)
  child.kill("SIGTERM")
  await exit
  const exported = collector.bodies().join("\n")
  assert.include(exported, "access_token=REDACTED")
  for (const text of [...received, output(), page, exported]) {
    for (const each of [key, adminKey, secret, token, forged, token.split(".")[1] ?? "", "opaque-0123456789"]) {
      assert.notInclude(text, each)
    }
  }
})
