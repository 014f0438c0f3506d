/** Access tokens of an OAuth authorization server. */
import type { IncomingMessage } from "node:http"
import { get } from "node:https"
import { assert, describe, it } from "vitest"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as AuthorizationServer from "../kit/gateway/authorizationServer.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const wellKnown = "/.well-known/oauth-protected-resource"

/** Asks without starting a process: the gateway answers 406 to a caller that it accepts. */
const ask = (url: string, token: string) => fetch(url, { headers: { ...Kit.bearer(token), accept: "text/html" } })
const accepted = 406
const statusOf = async (url: string, token: string): Promise<number> => (await ask(url, token)).status

describe("a gateway with an authorization server", async () => {
  const server = await AuthorizationServer.start("/tenant")
  const { origin, url } = await Serving.gateway({
    backends: { counter: Kit.counter() },
    auth: { issuer: server.issuer, scopes: ["mcp"] },
    allowedOrigins: ["https://app.example.com"]
  })
  const token = (claims = {}, options = {}) => server.token({ aud: url, scope: "mcp", ...claims }, options)

  it("accepts a token for the URL of the back end, in each of its forms, or for the gateway as a whole", async () => {
    for (const path of ["/mcp", "/mcp/counter", "/counter/mcp"]) {
      for (const aud of [`${origin}${path}`, origin, `${origin}/`, ["https://other.example", origin]]) {
        assert.strictEqual(await statusOf(`${origin}${path}`, await token({ aud })), accepted, `${path} ${String(aud)}`)
      }
    }
  })

  it("answers 401 without a token, and tells where its metadata is and which scopes to ask for", async () => {
    for (const path of ["/mcp", "/mcp/counter", "/counter/mcp"]) {
      const { headers, status } = await Kit.initialize(`${origin}${path}`)
      const challenge = `Bearer scope="mcp", resource_metadata="${origin}${wellKnown}${path}"`
      assert.deepStrictEqual([status, headers.get("www-authenticate")], [401, challenge])
    }
  })

  it("publishes the metadata of each form of its URL", async () => {
    for (const path of ["", "/mcp", "/mcp/counter", "/counter/mcp"]) {
      const response = await fetch(`${origin}${wellKnown}${path}`)
      assert.deepStrictEqual([response.status, response.headers.get("content-type")], [200, "application/json"])
      assert.deepStrictEqual(await response.json(), {
        resource: `${origin}${path}`,
        authorization_servers: [server.issuer],
        scopes_supported: ["mcp"],
        bearer_methods_supported: ["header"]
      })
    }
  })

  it("lets pages of listed origins read the metadata, and refuses other origins and hosts", async () => {
    const ask = (headers: Record<string, string>, method = "GET") =>
      fetch(`${origin}${wellKnown}/mcp`, { method, headers })
    const app = "https://app.example.com"
    assert.strictEqual((await ask({ origin: app })).headers.get("access-control-allow-origin"), app)
    const asked = { "access-control-request-method": "GET", "access-control-request-headers": "mcp-protocol-version" }
    const preflight = await ask({ origin: app, ...asked }, "OPTIONS")
    assert.deepStrictEqual(
      [preflight.status, preflight.headers.get("access-control-allow-headers")],
      [204, "mcp-protocol-version"]
    )
    assert.strictEqual((await ask({ origin: "https://evil.example" })).status, 403)
    const { status } = await Serving.ask(origin, `${wellKnown}/mcp`, { host: "evil.example" }, "GET")
    assert.strictEqual(status, 403)
    assert.strictEqual((await ask({}, "POST")).status, 405)
  })

  it("keeps a session across a renewed token of the same subject, and hides it from another subject", async () => {
    const first = Kit.bearer(await token({ sub: "grace" }))
    const session = await Kit.open(url, {}, first)
    const renewed = Kit.bearer(await token({ sub: "grace", jti: "2" }))
    const answer = await Kit.answerOf(await Kit.post(url, session, Kit.toolCall(1, "count"), renewed))
    assert.strictEqual(answer.result.content[0].text, "1")
    const other = Kit.bearer(await token({ sub: "eve" }))
    assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "count"), other)).status, 404)
  })

  it("knows a client without a subject by its client_id, which is not the subject of the same name", async () => {
    const session = await Kit.open(url, {}, Kit.bearer(await token({ sub: undefined, client_id: "robot" })))
    const other = Kit.bearer(await token({ sub: "robot" }))
    assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "count"), other)).status, 404)
  })

  it("asks for the keys once, however many tokens it verifies", () => {
    assert.deepStrictEqual(server.asked.filter((path) => path === "/jwks"), ["/jwks"])
  })
})

it("a token is refused when it has expired, although it is remembered as a valid one", async () => {
  const server = await AuthorizationServer.start()
  const clock = AheadClock.make()
  const settings = { auth: { issuer: server.issuer, clockTolerance: "5 seconds" } } as const
  const { url } = await Serving.gateway({ backends: { counter: Kit.counter() }, ...settings }, clock)
  const token = await server.token({ aud: url, exp: Math.floor(Date.now() / 1000) + 20 })
  assert.strictEqual(await statusOf(url, token), accepted)
  // Claims are remembered for 30 seconds.
  clock.pass("26 seconds")
  const { headers, status } = await ask(url, token)
  assert.strictEqual(status, 401)
  assert.include(headers.get("www-authenticate"), "error_description=\"The access token has expired\"")
})

describe("scopes", async () => {
  const server = await AuthorizationServer.start()
  const key = "a-key-of-a-client-0123456789"
  const { origin } = await Serving.gateway({
    backends: { open: Kit.counter(), files: { ...Kit.counter(), scopes: ["files:read", "files:write"] } },
    auth: { issuer: server.issuer, scopes: ["mcp"] },
    keys: [key]
  })
  const url = `${origin}/mcp/files`
  const token = (claims: Record<string, unknown>) => server.token({ aud: origin, ...claims })

  it("a token without a back end's scopes gets 403 there, with every scope to ask for", async () => {
    const few = await token({ scope: "mcp files:read other" })
    assert.strictEqual(await statusOf(`${origin}/mcp/open`, few), accepted)
    for (const path of ["/mcp/files", "/files/mcp"]) {
      const { headers, status } = await ask(`${origin}${path}`, few)
      assert.deepStrictEqual([status, headers.get("www-authenticate")], [
        403,
        "Bearer error=\"insufficient_scope\", error_description=\"The access token lacks the scope files:write\", " +
        `scope="mcp files:read files:write", resource_metadata="${origin}${wellKnown}${path}"`
      ])
    }
  })

  it("scopes are read from scope and from scp, as a text or a list", async () => {
    const all = ["mcp", "files:read", "files:write"]
    for (const claims of [{ scope: all.join(" ") }, { scp: all }, { scp: all.join(" ") }]) {
      assert.strictEqual(await statusOf(url, await token(claims)), accepted)
    }
    for (const claims of [{}, { scope: "mcp files:readx files:write" }, { scope: { mcp: 1 } }]) {
      assert.strictEqual(await statusOf(url, await token(claims)), 403)
    }
  })

  it("the metadata of a back end lists its scopes too, and that of the gateway does not", async () => {
    const scopesAt = async (path: string) =>
      (await (await fetch(`${origin}${wellKnown}${path}`)).json()).scopes_supported
    assert.deepStrictEqual(await scopesAt("/mcp/files"), ["mcp", "files:read", "files:write"])
    assert.deepStrictEqual(await scopesAt(""), ["mcp"])
  })

  it("a token for the URL of one back end is not accepted by another", async () => {
    const claims = { aud: `${origin}/mcp/open`, scope: "mcp files:read files:write" }
    assert.strictEqual(await statusOf(`${origin}/mcp/open`, await token(claims)), accepted)
    assert.strictEqual(await statusOf(url, await token(claims)), 401)
  })

  it("a key needs no scopes", async () => {
    assert.strictEqual(await statusOf(url, key), accepted)
  })
})

describe("the URL of the gateway", async () => {
  const server = await AuthorizationServer.start()

  it("publicUrl stands in the metadata and the challenge, and is the audience", async () => {
    const publicUrl = "https://example.com/tools"
    const { origin, url } = await Serving.gateway({
      backends: { counter: Kit.counter() },
      auth: { issuer: server.issuer },
      publicUrl: `${publicUrl}/`
    })
    const { resource } = await (await fetch(`${origin}${wellKnown}/mcp`)).json()
    assert.strictEqual(resource, `${publicUrl}/mcp`)
    const challenge = (await fetch(url)).headers.get("www-authenticate")
    assert.strictEqual(challenge, `Bearer resource_metadata="${publicUrl}${wellKnown}/mcp"`)
    for (const aud of [publicUrl, `${publicUrl}/mcp`]) {
      assert.strictEqual(await statusOf(url, await server.token({ aud })), accepted)
    }
    for (const aud of [url, origin, "https://example.com"]) {
      assert.strictEqual(await statusOf(url, await server.token({ aud })), 401)
    }
  })

  it.each([
    ["https://Example.COM:443/", "https://example.com"],
    ["https://例え.jp/tools", "https://xn--r8jz45g.jp/tools"]
  ])("publicUrl %s is told as clients write it", async (publicUrl, normal) => {
    const auth = { issuer: server.issuer }
    const { url } = await Serving.gateway({ backends: { counter: Kit.counter() }, auth, publicUrl })
    const { headers, status } = await ask(url, await server.token({ aud: "other" }))
    assert.strictEqual(status, 401)
    assert.include(headers.get("www-authenticate"), `resource_metadata="${normal}${wellKnown}/mcp"`)
    assert.strictEqual(await statusOf(url, await server.token({ aud: `${normal}/mcp` })), accepted)
  })

  it("begins with https in the metadata of a gateway with TLS, and an unknown path names the authorization server", async () => {
    const path = (name: string) => new URL(`../fixtures/tls/${name}.pem`, import.meta.url).pathname
    const flags = ["--tls-cert", path("cert"), "--tls-key", path("key"), "--auth-issuer", server.issuer]
    const { origin } = await Serving.command(flags)
    const read = async (path: string) => {
      const response = await new Promise<IncomingMessage>((resolve, reject) => {
        get(`${origin}${path}`, { rejectUnauthorized: false }, resolve).on("error", reject)
      })
      return JSON.parse((await response.toArray()).join(""))
    }
    assert.strictEqual((await read(`${wellKnown}/mcp`)).resource, `${origin}/mcp`)
    const { error_description } = await read("/.well-known/oauth-authorization-server")
    assert.include(error_description, `Its authorization server is ${server.issuer}`)
  })

  it("auth.audience replaces the URL as the audience", async () => {
    const { url } = await Serving.gateway({
      backends: { counter: Kit.counter() },
      auth: { issuer: server.issuer, audience: ["api://mcp"] }
    })
    assert.strictEqual(await statusOf(url, await server.token({ aud: ["other", "api://mcp"] })), accepted)
    assert.strictEqual(await statusOf(url, await server.token({ aud: url })), 401)
  })
})

describe("an opaque token", async () => {
  const server = await AuthorizationServer.start()
  const { origin, url } = await Serving.gateway({
    backends: { counter: Kit.counter() },
    auth: { issuer: server.issuer, scopes: ["mcp"], clientId: "gate way", clientSecret: "s3cr:t" }
  })
  const active = () => ({ active: true, sub: "ada", scope: "mcp", aud: origin, exp: Date.now() / 1000 + 60 })
  const told: Array<readonly [string | undefined, string]> = []
  const means = (claims: object) =>
    server.answers.set("/introspect", (response, body, request) => {
      told.push([request.headers.authorization, body])
      AuthorizationServer.json(claims)(response, body, request)
    })

  it("is accepted if the authorization server says that it is active, and asked about once in 30 seconds", async () => {
    means(active())
    for (let i = 0; i < 3; i++) assert.strictEqual(await statusOf(url, "opaque"), accepted)
    const credentials = Buffer.from("gate%20way:s3cr%3At").toString("base64")
    assert.deepStrictEqual(told, [[`Basic ${credentials}`, "token=opaque&token_type_hint=access_token"]])
  })

  it("is refused if it is not active, has expired, or is for another server, issuer or scope", async () => {
    const cases = [{ active: false }, { active: "true" }, { exp: 1 }, { aud: "https://other.example" }, {
      iss: "https://a"
    }]
    for (const [i, claims] of [...cases, { exp: undefined }, { aud: undefined }].entries()) {
      means({ ...active(), ...claims })
      assert.strictEqual(await statusOf(url, `refused-${i}`), 401, JSON.stringify(claims))
    }
    means({ ...active(), scope: "other" })
    assert.strictEqual(await statusOf(url, "scopeless"), 403)
  })

  it("gets 503 if the authorization server does not accept the gateway's own credentials", async () => {
    server.answers.set("/introspect", (response) => void response.writeHead(401).end())
    const { headers, status } = await ask(url, "unanswered")
    assert.deepStrictEqual([status, headers.get("retry-after"), headers.get("www-authenticate")], [503, "5", null])
  })

  it("is asked about together with at most 15 others", async () => {
    const held: Array<() => void> = []
    let most = 0
    server.answers.set("/introspect", (response, body, request) => {
      held.push(() => AuthorizationServer.json(active())(response, body, request))
      most = Math.max(most, held.length)
      // Leaves time for a request too many.
      if (most >= 16) setTimeout(() => held.splice(0).forEach((answer) => answer()), 50)
    })
    const statuses = await Promise.all(Array.from({ length: 40 }, (_, i) => statusOf(url, `flood-${i}`)))
    assert.deepStrictEqual([new Set(statuses), most], [new Set([accepted]), 16])
  })

  it("is refused with what is missing if the gateway cannot ask about it", async () => {
    const without = await AuthorizationServer.start()
    const metadata = { ...without.metadata, introspection_endpoint: undefined }
    without.answers.set("/.well-known/oauth-authorization-server", AuthorizationServer.json(metadata))
    const cases = [
      [{ issuer: server.issuer }, "without auth.clientId"],
      [{ issuer: without.issuer, clientId: "a", clientSecret: "b" }, "without an introspection_endpoint of its server"]
    ] as const
    for (const [auth, lack] of cases) {
      const { url } = await Serving.gateway({ backends: { counter: Kit.counter() }, auth })
      const refused = await Kit.initialize(url, Kit.bearer("opaque"))
      const message = `The access token is not a JWT, and the gateway cannot ask about it ${lack}`
      assert.deepStrictEqual([refused.status, (await refused.json()).error.message], [401, message])
    }
  })
})
