/** OAuth with a real authorization server, the official clients, and the habits of hosted clients. */
import { assert, describe, it } from "@effect/vitest"
import { execFile } from "node:child_process"
import { promisify } from "node:util"
import { afterAll } from "vitest"
import * as Documents from "../kit/documents.ts"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Hosted from "../kit/gateway/hostedClient.ts"
import { answers, asking, callTool, everything as capabilities, textOf } from "../kit/gateway/modern.ts"
import { connect, connectModern, Credentials } from "../kit/gateway/oauthClient.ts"
import * as OidcProvider from "../kit/gateway/oidcProvider.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"
import { pathWithCurl } from "../kit/programs.ts"

const authorizationServer = async (...options: Parameters<typeof OidcProvider.start>) => {
  const server = await OidcProvider.start(...options)
  afterAll(server.stop)
  return server
}
const server = await authorizationServer({ scopes: ["mcp", "admin"] })
const auth = { issuer: server.issuer, scopes: ["mcp"], clockTolerance: "0 seconds" } as const
const { origin } = await Serving.gateway({
  auth,
  backends: {
    counter: Kit.counter(),
    shared: { ...Kit.counter(), sessions: "caller" },
    guarded: { ...Kit.counter(), scopes: ["admin"] },
    asking: asking()
  }
})
const urlOf = (backend: string): string => `${origin}/mcp/${backend}`
const tokenOf = (account: string, backend: string) => server.token({ account, resource: urlOf(backend) })

interface Caller {
  readonly callTool: (call: { name: string; arguments: Record<string, unknown> }) => Promise<Record<string, unknown>>
}

/** Calls the tool `count`. Returns the text of its result. */
const count = async (client: Caller): Promise<string> => {
  const { content } = await client.callTool({ name: "count", arguments: {} })
  return Array.isArray(content) ? content[0].text : ""
}

/** The claims of an access token. */
const claimsOf = (token = ""): Record<string, unknown> =>
  JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString())

/** The number of requests that the authorization server got for a path. */
const asked = (path: string): number => server.requests.filter((each) => each === path).length

describe("the official client's OAuth", () => {
  it("leads from the gateway's 401 to a token for the back end, and a call", async () => {
    const credentials = new Credentials("ada")
    const client = await connect(urlOf("counter"), credentials)
    assert.strictEqual(await count(client), "1")
    const { aud, scope, sub } = claimsOf(credentials.tokens()?.access_token)
    assert.deepStrictEqual({ aud, scope, sub }, { aud: urlOf("counter"), scope: "mcp", sub: "ada" })
    assert.strictEqual(asked("/reg"), 1)
    await client.close()
  })

  it("serves a client of revision 2026-07-28 that registers nowhere and has a metadata document", async () => {
    const before = asked("/reg")
    const client = await connectModern(urlOf("counter"), new Credentials("ada", true), { pin: "2026-07-28" })
    assert.strictEqual(await count(client), "1")
    assert.strictEqual(asked("/reg"), before)
    await client.close()
  })

  it("asks the user for the further scopes of a back end after the gateway's 403", async () => {
    const credentials = new Credentials("ada", true)
    const access_token = await tokenOf("ada", "guarded")
    credentials.saveTokens({ access_token, issuer: server.issuer, scope: "mcp", token_type: "Bearer" })
    const client = await connectModern(urlOf("guarded"), credentials, "legacy")
    assert.strictEqual(await count(client), "1")
    assert.sameMembers(String(claimsOf(credentials.tokens()?.access_token)["scope"]).split(" "), ["admin", "mcp"])
    await client.close()
  })
})

describe("the account of a token", () => {
  it("finds no session of another account", async () => {
    const url = urlOf("counter")
    const [ada, eve] = [await tokenOf("ada", "counter"), await tokenOf("eve", "counter")]
    const session = await Kit.open(url, {}, Kit.bearer(ada))
    const call = (token: string) => Kit.post(url, session, Kit.toolCall(1, "count"), Kit.bearer(token))
    const refused = await call(eve)
    assert.deepStrictEqual([refused.status, (await refused.json()).error.code], [404, -32001])
    // Another token of the same account.
    const { result } = await Kit.answerOf(await call(await tokenOf("ada", "counter")))
    assert.strictEqual(result.content[0].text, "1")
  })

  it("is the only one that may answer the question of its parked call", async () => {
    const url = urlOf("asking")
    const [ada, eve] = [await tokenOf("ada", "asking"), await tokenOf("eve", "asking")]
    const question = await callTool(url, "ask", {}, { capabilities, key: ada })
    const again = answers(question, "forty-two")
    const refused = await callTool(url, "ask", {}, { again, capabilities, key: eve })
    assert.deepStrictEqual([refused.status, refused.last.error.code], [400, -32602])
    const renewed = await tokenOf("ada", "asking")
    assert.strictEqual(
      textOf(await callTool(url, "ask", {}, { again, capabilities, key: renewed })),
      "answered forty-two"
    )
  })
})

describe("an expired token", () => {
  it("is renewed by the official client, which goes on in its session", async () => {
    const clock = AheadClock.make()
    const { url } = await Serving.gateway({ auth, backends: { counter: Kit.counter() } }, clock)
    const credentials = new Credentials("ada")
    const client = await connect(url, credentials)
    assert.strictEqual(await count(client), "1")
    clock.pass(`${server.lifetime + 1} seconds`)
    server.lifetime *= 2
    assert.strictEqual(await count(client), "2")
    assert.strictEqual(credentials.got.length, 2)
    await client.close()
    server.lifetime /= 2
  })

  it("ends an open stream within 5 seconds, and a renewed token opens it again", async () => {
    const clock = await StillClock.make()
    // The clock of the authorization server is the machine's.
    const now = Date.now()
    await clock.pass(now)
    const { url } = await Serving.gateway({ auth, backends: { counter: Kit.counter() } }, clock)
    const token = await server.token({ lifetime: 9, resource: url })
    const session = await Kit.open(url, {}, Kit.bearer(token))
    const stream = await Kit.listen(url, session, Kit.bearer(token))
    assert.strictEqual(stream.status, 200)
    await clock.pass(Number(claimsOf(token)["exp"]) * 1000 + 5000 - now)
    // Ends when the stream does.
    await stream.text()
    assert.strictEqual((await Kit.listen(url, session, Kit.bearer(token))).status, 401)
    const renewed = await server.token({ lifetime: 600, resource: url })
    assert.strictEqual((await Kit.listen(url, session, Kit.bearer(renewed))).status, 200)
  })
})

describe("the manual", () => {
  it("shows requests that lead from the gateway to its authorization server", async () => {
    const [first = "", second = "", third = ""] = Documents.block("src/gateway/README.md", "sh", "resource/mcp/notes")
      .replaceAll("https://mcp.example.com", origin).replaceAll("https://auth.example.com", server.issuer)
      .replaceAll("notes", "counter").split("\n")
    const run = async (line: string) => {
      const environment = { ...process.env, PATH: pathWithCurl() }
      return (await promisify(execFile)("bash", ["-c", line], { env: environment })).stdout
    }
    const refused = await run(first)
    assert.include(refused, "HTTP/1.1 401 Unauthorized\r\n")
    assert.include(refused, `resource_metadata="${second.split(" ").at(-1)}"`)
    assert.deepStrictEqual(JSON.parse(await run(second)).authorization_servers, [server.issuer])
    const { code_challenge_methods_supported, issuer } = JSON.parse(await run(third))
    assert.deepStrictEqual([issuer, code_challenge_methods_supported], [server.issuer, ["S256"]])
  })
})

describe("an opaque token", () => {
  it("is accepted after the authorization server has said whose it is", async () => {
    const opaque = await authorizationServer({ format: "opaque" })
    const { id: clientId, secret: clientSecret } = OidcProvider.gatewayClient
    const { url } = await Serving.gateway({
      auth: { issuer: opaque.issuer, scopes: ["mcp"], clientId, clientSecret },
      backends: { counter: Kit.counter() }
    })
    const credentials = new Credentials("ada")
    const client = await connect(url, credentials)
    assert.strictEqual(await count(client), "1")
    assert.notInclude(credentials.tokens()?.access_token, ".")
    await client.close()
    assert.strictEqual((await Kit.initialize(url, Kit.bearer("not-a-token-of-this-server"))).status, 401)
  })
})

describe("hosted clients, which open a session for each call", () => {
  const calls = async (hosted: Hosted.Hosted, account: string, backend: string) => {
    const token = await Hosted.logIn(urlOf(backend), hosted, account)
    const texts: Array<string> = []
    for (let i = 0; i < 4; i++) texts.push(await Hosted.call(urlOf(backend), hosted, token, "count"))
    return texts
  }

  it.each([Hosted.claude, Hosted.chatGpt])(
    "keep their state by account with sessions: caller ($name)",
    async (hosted) => {
      const [ada, eve] = await Promise.all([calls(hosted, "ada", "shared"), calls(hosted, "eve", "shared")])
      assert.deepStrictEqual([ada, eve], [["1", "2", "3", "4"], ["1", "2", "3", "4"]])
    }
  )

  it("lose their state with sessions: client", async () => {
    assert.deepStrictEqual(await calls(Hosted.claude, "ada", "counter"), ["1", "1", "1", "1"])
  })
})
