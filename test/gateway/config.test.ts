/** The configuration from a file, the environment and the command line, and its faults. */
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Option, Schema } from "effect"
import * as Config from "../../src/gateway/app/Config.ts"
import * as Loading from "../../src/gateway/app/Loading.ts"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Masking from "../../src/gateway/settings/Masking.ts"
import * as Settings from "../../src/gateway/settings/Settings.ts"
import * as Backends from "../../src/gateway/transports/Backends.ts"

const loadText = (text: string, more: Partial<Config.Sources> = {}) =>
  Effect.runSync(Effect.catch(
    Config.load({ flags: {}, environment: {}, file: { name: "file.json", text }, entries: {}, ...more }),
    Effect.succeed
  ))

const load = (mcpServers: unknown, gateway: unknown = {}, environment: Record<string, string> = {}) =>
  loadText(JSON.stringify({ mcpServers, gateway }), { environment })

const valid = (read: ReturnType<typeof load>): Config.Loaded =>
  read instanceof Backends.InvalidGatewayOptions ? assert.fail(read.message) : read

const faults = (read: ReturnType<typeof load>): ReadonlyArray<string> =>
  read instanceof Backends.InvalidGatewayOptions ? read.faults : []

const servers = { a: { command: "run" } }

const processEntry = Schema.Struct({
  args: Schema.Array(Schema.String),
  env: Schema.Record(Schema.String, Schema.String)
})

/** The arguments and variables of the only back end, which is a process. */
const processOf = (read: ReturnType<typeof load>) => {
  const [backend = assert.fail()] = valid(read).backends.values()
  return { ...backend, ...Schema.decodeUnknownSync(processEntry)(backend.entry) }
}

describe("a configuration file", () => {
  it("a file may have comments and trailing commas", () => {
    const text = `{ // The servers.\n "mcpServers": { /* one */ "a": { "command": "run", "args": ["x",], }, }, }`
    assert.deepStrictEqual(processOf(loadText(text)).args, ["x"])
  })

  const secret = "sk-1234567890"
  const noJson = "file.json: the file is not JSON:"
  const none = "mcpServers: must have at least one back end that is not disabled"
  it.each([
    [`{ "a": ${secret} }`, `${noJson} invalid symbol (line 1, column 8)`],
    [`{ "a" "${secret}" }`, `${noJson} colon expected (line 1, column 7)`],
    [`{ "a": 1\n "${secret}": 2 }`, `${noJson} comma expected (line 2, column 2)`],
    [`{ "a": "C:\\${secret}" }`, `${noJson} invalid escape character (line 1, column 8)`],
    [`{ "a": "${secret}\n" }`, `${noJson} unexpected end of string (line 1, column 8)`],
    [`{\r\n\t# ${secret}\r\n}`, `${noJson} invalid symbol (line 2, column 2)`],
    ["{ \"a\": {\n", `${noJson} close brace expected (line 2, column 1)`],
    ["", `${noJson} value expected (line 1, column 1)`],
    ["[]", "file.json: the file must be a JSON object"],
    ["{}", "mcpServers: must be an object of back ends by name"],
    ["{\"mcpServers\":{}}", none],
    ["{\"mcpServers\":{\"a\":{\"disabled\":true}}}", none],
    ["{\"servers\":{}}", "servers: unknown; did you mean mcpServers?"],
    ["{\"mcp_server\":{}}", "mcp_server: unknown; did you mean mcpServers?"],
    ["{\"mcpServers\":{\"a\":{\"command\":\"run\"}},\"gatewy\":{}}", "gatewy: unknown; did you mean gateway?"],
    ["{\"mcpServers\":{\"a\":{\"command\":\"run\"}},\"gateway\":[]}", "gateway: must be an object"]
  ])("refuses a wrong file with one fault, which does not quote the file: %j", (text, fault) => {
    assert.deepStrictEqual(faults(loadText(text)), [fault])
  })

  it("refuses a file in which an object has a name twice", () => {
    const text = `{
      "mcpServers": {
        "a": { "command": "run", "args": ["args", "args"], "env": { "X": "1", "\\u0058": "2" } },
        "b": { "command": "b" }, "b": { "command": "b" }
      },
      "inputs": [{ "id": 1 }, { "id": 2, "id": 3 }]
    }`
    const again = (at: string) => `appears twice in its object (again at ${at}); only the last would count`
    assert.deepStrictEqual(faults(loadText(text)), [
      `mcpServers.a.env.X: ${again("line 3, column 79")}`,
      `mcpServers.b: ${again("line 4, column 34")}`,
      `inputs.id: ${again("line 6, column 42")}`
    ])
  })

  it("warns of names that the gateway does not read, at the top of a file and in an entry", () => {
    const mcpServers = { a: { command: "run", autoApprove: ["${NONE}"], timeout: 60 } }
    const text = JSON.stringify({ mcpServers, "a\n": {}, servers: {} })
    assert.deepStrictEqual(valid(loadText(text)).warnings, [
      "file.json: the gateway does not read \"a\\n\", \"servers\"; settings belong in \"gateway\"",
      "mcpServers.a.autoApprove: the gateway does not read it",
      "mcpServers.a.timeout: the gateway does not read it"
    ])
  })
})

describe("an entry", () => {
  const unset = "the environment variable NONE is not set; set it, or write ${NONE:-default}"
  const sse = "; the gateway does not support HTTP with SSE (2024-11-05): give the URL for Streamable HTTP"
  const noVariable = ": is not the name of a variable"
  const notForUrl = ": is not for a back end with a url; remove it"
  const url = "http://localhost/"
  const cases: ReadonlyArray<readonly [entry: unknown, ...faults: ReadonlyArray<string>]> = [
    [[], ": must be an object"],
    [{}, ": must have a command or a url"],
    [{ command: "run", url }, ": must have a command or a url, and only one"],
    [{ comand: "run", args: [] }, ".comand: unknown; did you mean command?"],
    [{ httpUrl: url, headers: {} }, ".httpUrl: unknown; did you mean url?"],
    [{ serverUrl: url }, ".serverUrl: unknown; did you mean url?"],
    [{ command: "run", environment: {} }, ".environment: unknown; did you mean env?"],
    [{ command: "run", maxInflights: 5 }, ".maxInflights: unknown; did you mean maxInFlight?"],
    [{ command: "run", disabled: "true" }, ".disabled: must be true or false"],
    [{ command: "" }, ".command: must not be empty"],
    [{ command: "${NONE:-}" }, ".command: must not be empty"],
    [{ command: "${NONE}" }, `.command: ${unset}`],
    [{ command: "run", spares: "${NONE}" }, `.spares: ${unset}`],
    [{ command: "run", spares: -1 }, ".spares: must be an integer of at least 0"],
    [{ command: "run", type: "http" }, ".type: must be \"stdio\" for a command"],
    [
      { command: 5, args: ["x", 1], env: { A: 1, "": "x" }, cwd: null },
      ".command: must be a string: the program to run",
      ".args[1]: must be a string",
      ".env.A: must be a string",
      ".cwd: must be a string: a directory"
    ],
    [{ command: "run", args: "x" }, ".args: must be an array of strings"],
    [{ command: "run", env: [] }, ".env: must be an object of strings"],
    [{ command: "run", env: { "": "x", "A=B": "x" } }, `.env.${noVariable}`, `.env.A=B${noVariable}`],
    [{ url: 5 }, ".url: must be a string: the URL of an MCP server on Streamable HTTP"],
    [{ url: "ftp://localhost" }, ".url: must be an http: or https: URL"],
    [{ url: "${NONE}" }, `.url: ${unset}`],
    [{ url, type: "sse" }, `.type: must be "http" for a url${sse}`],
    [{ url, type: ["http"] }, `.type: must be "http" for a url${sse}`],
    [{ url, headers: { "a b": "x" } }, ".headers.a b: is not the name of a header"],
    [{ url, headers: { Host: "x" } }, ".headers.Host: must not be given: the gateway sets it itself"],
    [{ url, headers: { x: "a\nb" } }, ".headers.x: must not contain line breaks or control characters"],
    [{ url, spares: 1, stateless: true }, `.spares${notForUrl}`, `.stateless${notForUrl}`]
  ]
  it.each(cases)("refuses an entry with each of its faults: %j", (entry, ...told) => {
    assert.sameMembers([...faults(load({ a: entry }))], told.map((fault) => `mcpServers.a${fault}`))
  })

  it("refuses an unknown name in an entry, and lists the allowed names", () => {
    const [stdio = "", http = ""] = faults(load({ a: { command: "run", oauth: {} }, b: { url, tools: [] } }))
    assert.match(stdio, /^mcpServers\.a\.oauth: unknown; allowed are command, args, env, cwd, type, idleTimeToLive, /)
    assert.match(http, /^mcpServers\.b\.tools: unknown; allowed are url, headers, type, idleTimeToLive, /)
  })

  it("an HTTP entry ignores settings of processes that are set for all back ends", () => {
    const { backends } = valid(load({ local: { command: "run" }, remote: { url } }, { spares: 2, stateless: true }))
    const settings = [...backends.values()].map(({ settings: { spares, stateless } }) => [spares, stateless])
    assert.deepStrictEqual(settings, [[2, true], [0, false]])
    assert.deepStrictEqual(faults(load({ remote: { url, spares: 0, stateless: false } })), [])
  })

  it("a disabled entry is left out, and may have faults", () => {
    const read = load({ a: { command: "run", disabled: false }, b: { command: "${NONE}", disabled: true, odd: 1 } })
    assert.deepStrictEqual([...valid(read).backends.keys()], ["a"])
  })

  it("an entry whose name is not safe in a URL is served under a safe name with a warning, if that name is free", () => {
    const entry = { command: "run" }
    const { backends, warnings } = valid(load({ "My Files": entry, "Über/x!": entry, "_a_": entry, "plain": entry }))
    assert.deepStrictEqual([...backends.keys()], ["My-Files", "Uber-x", "a_", "plain"])
    assert.strictEqual(warnings[0], `mcpServers.My Files: served at /mcp/My-Files, because ${Backends.allowedName}`)
    assert.deepStrictEqual(faults(load({ "a b": entry, "a-b": entry, "日本": entry })), [
      "mcpServers.a b: needs another name: another server already has \"a-b\" in its URL",
      `mcpServers.日本: ${Backends.allowedName}`
    ])
  })

  it("the text of an entry is independent of the order of its names and of the values of its variables", () => {
    const textOf = (entry: object, A: string) => processOf(load({ a: entry }, {}, { A, B: "x" })).entryText()
    const one = textOf({ command: "run", args: ["${A}"], env: { X: "1", Y: "${A}" } }, "secret")
    assert.strictEqual(textOf({ env: { Y: "${A}", X: "1" }, args: ["${A}"], command: "run" }, "other"), one)
    assert.notInclude(one, "secret")
    assert.notStrictEqual(textOf({ command: "run", args: ["${B}"], env: { X: "1", Y: "${A}" } }, "x"), one)
  })

  it("an entry may have a URL whose password is not percent-encoded", () => {
    const { backends } = valid(load({ a: { url: "http://me:100%sure@example.org/mcp" } }))
    const [backend = assert.fail()] = backends.values()
    assert.strictEqual(backend.mask("with 100%sure of it"), "with *** of it")
    assert.deepStrictEqual([Masking.percentDecoded("%41%"), Masking.percentDecoded("%41")], ["%41%", "A"])
  })
})

describe("a variable in a file", () => {
  it("a variable is expanded in every text, and its value is hidden in messages of the back end", () => {
    const entry = {
      command: "run",
      args: ["${env:HOST}", "${env:NONE:-x}", "${ ${HOST}"],
      env: { A: "-${HOST}-" },
      spares: "${SPARES:-2}"
    }
    const gateway = { keys: ["x${KEY}"], adminKeys: "${ADMINS}", requestTimeout: "${NONE:-7} seconds" }
    const read = load({ a: entry }, gateway, { HOST: "example.org", KEY: "s3cret-key", ADMINS: "one,two" })
    const { args, env, mask, settings } = processOf(read)
    assert.deepStrictEqual(args, ["example.org", "x", "${ example.org"])
    assert.deepStrictEqual([env, settings.spares], [{ A: "-example.org-" }, 2])
    assert.strictEqual(mask("s3cret-key at example.org"), "*** at ***")
    const { adminKeys, keys, requestTimeout } = valid(read).settings
    assert.deepStrictEqual([keys, adminKeys, Duration.toSeconds(requestTimeout)], [["xs3cret-key"], ["one", "two"], 7])
  })

  it.each([
    ["${NONE}", "the environment variable NONE is not set; set it, or write ${NONE:-default}"],
    ["${constructor}", "the environment variable constructor is not set; set it, or write ${constructor:-default}"],
    ["${A:-${B:-z}}", "must not have a variable in the default of ${A}"],
    ["${input:s3cret}", "must not have ${input:…}: the gateway reads ${NAME} from its environment"]
  ])("refuses a variable with one fault in each place: %s", (text, fault) => {
    assert.deepStrictEqual(faults(load({ a: { command: "run", args: [text] } }, { keys: ["a", text] })), [
      `gateway.keys[1]: ${fault}`,
      `mcpServers.a.args[0]: ${fault}`
    ])
  })

  it("leaves the variables of a shell as they are", () => {
    const script = "${A%.*} ${A:+x} ${A:0:3} ${#A} ${A[@]} ${} ${a ? b : c}"
    assert.deepStrictEqual(processOf(load({ a: { command: "sh", args: ["-c", script] } })).args, ["-c", script])
  })
})

describe("a setting", () => {
  const origins = ["https://a:1/", "vscode-webview://abc", " http://[::1] ", "null"]
  const noDurations = [5, true, null, { seconds: 1 }, "5M", "-5m", "0s", "1h30m"]
  const cases: ReadonlyArray<readonly [name: string, good: ReadonlyArray<unknown>, bad: ReadonlyArray<unknown>]> = [
    ["requestTimeout", ["1 second", "5m", " 1.5h ", "250ms", "infinity"], noDurations],
    ["closeGrace", ["0s", "1 second"], [0, "-1 seconds", "soon"]],
    ["maxSessions", [1, "12"], [0, -1, 1.5, "", "1e3", true, [1]]],
    ["port", [0, 65535], [-1, 65536]],
    ["maxBodyBytes", [1024, "2048", "4 MiB"], [0, 1023, 1.5, "many", "1 B", true]],
    ["insecure", [true, "no", "1"], [1, "", "maybe", [true]]],
    ["era", ["auto", "legacy"], ["Auto", "", 1, ["auto"]]],
    ["stateKey", ["k".repeat(32)], ["short", 1]],
    ["keys", [["a"], "a, b", []], ["", "a,,b", [""], [1], {}]],
    ["host", ["::1", "localhost"], ["", "http://127.0.0.1", "127.0.0.1 "]],
    ["allowedHosts", ["mcp.example.com, [2001:db8::1],10.0.0.7"], [["a:8443"], "https://a", "*", "*.a", "a b", [5]]],
    ["allowedOrigins", [origins], ["a", "*", "https://a/b", "https://*.a"]],
    ["keysFile", ["k"], ["", "${NONE:-}", 1]],
    ["publicUrl", ["https://mcp.example.com", "http://10.0.0.7:8420/tools/"], [
      "mcp.example.com",
      "https://a b",
      "https://a?b"
    ]],
    ["keys", [["ada:k", ":k", "a b:"]], [["ada:"], "a,ada: "]]
  ]
  it.each(cases)("the setting %s has its allowed values only", (name, good, bad) => {
    for (const value of good) assert.deepStrictEqual(faults(load(servers, { [name]: value })), [], String(value))
    for (const value of bad) {
      const [fault = "", ...others] = faults(load(servers, { [name]: value }))
      assert.deepStrictEqual([fault.split(" must be ")[0], others], [`gateway.${name}:`, []], String(value))
      assert.include(fault, new Map(Object.entries(Settings.all)).get(name)?.allowed ?? "none")
    }
  })

  const issuer = "https://auth.example.com/"
  const authCases: typeof cases = [
    ["issuer", [issuer, "http://localhost:1/a", "http://[::1]"], [
      "",
      "auth",
      "http://auth.example.com",
      "https://",
      "https://a:99999",
      `${issuer}?a`
    ]],
    ["audience", [["https://mcp.example.com", "api"], "a,b"], ["", "a b", [""], [1], ["a\"b"], ["größe"]]],
    ["scopes", [["mcp:read", "a"], "a, b"], ["", "a b", ["\"a\""], ["a\\b"]]],
    ["algorithms", [["ES256"], "RS256,EdDSA"], ["none", "HS256", ["ES256", "HS512"], ""]],
    ["clockTolerance", ["0s", "5 minutes"], ["6 minutes", "infinity", 5]]
  ]
  it.each(authCases)("the setting auth.%s has its allowed values only", (name, good, bad) => {
    const read = (value: unknown) => faults(load(servers, { auth: { issuer, [name]: value } }))
    for (const value of good) assert.deepStrictEqual(read(value), [], String(value))
    for (const value of bad) {
      const [fault = "", ...others] = read(value)
      assert.deepStrictEqual([fault.split(" must be ")[0], others], [`gateway.auth.${name}:`, []], String(value))
    }
  })

  it("the settings of OAuth are in an object of the file or program, and elsewhere their names begin with auth", () => {
    const auth = { issuer: "${ISSUER}", clientId: "gateway", audience: ["a"] }
    const environment = { ISSUER: issuer, GATEWAY_AUTH_CLIENT_SECRET: "secret", GATEWAY_AUTH_AUDIENCE: "b" }
    const { settings } = valid(load(servers, { auth }, environment))
    assert.deepStrictEqual(
      [settings.authIssuer, settings.authClientId, settings.authClientSecret, settings.authAudience],
      [issuer, "gateway", "secret", ["b"]]
    )
    const program = Effect.runSync(Gateway.config({ backends: servers, auth: { issuer, scopes: ["mcp"] } }))
    assert.deepStrictEqual([program.settings.authIssuer, program.settings.authScopes], [issuer, ["mcp"]])
    const unset = Effect.runSync(Effect.flip(Gateway.config({ backends: servers, auth: { issuer: undefined } })))
    assert.deepStrictEqual(unset.faults, ["auth.issuer: is missing: without it, the gateway asks for no token"])
    assert.deepStrictEqual(faults(load(servers, { auth: [] })), ["gateway.auth: must be an object"])
    const [flat = "", nested = ""] = faults(load(servers, { authIssuer: issuer, auth: { isuer: issuer } }))
    assert.strictEqual(flat, "gateway.authIssuer: unknown; write auth.issuer")
    assert.strictEqual(nested, "gateway.auth.isuer: unknown; did you mean issuer?")
  })

  const proxyHeader = "X-Forwarded-User"
  const needsName =
    "gateway.auth: needs publicUrl (such as https://mcp.example.com) or auth.audience, because clients reach"
  const pairs: ReadonlyArray<readonly [gateway: object, ...faults: ReadonlyArray<string>]> = [
    [{ scopes: ["a"] }, "gateway.auth.issuer: is missing: without it, the gateway asks for no token"],
    [{ auth: { scopes: ["a"] } }, "gateway.auth.issuer: is missing: without it, the gateway asks for no token"],
    [{ auth: {} }, "gateway.auth.issuer: is missing: without it, the gateway asks for no token"],
    [{ auth: { issuer, clientId: "a" } }, "gateway.auth.clientSecret: is missing: auth.clientId needs it"],
    [{ auth: { issuer, clientSecret: "a" } }, "gateway.auth.clientId: is missing: auth.clientSecret needs it"],
    [{ proxyHeader }, "gateway.trustedProxies: is missing: proxyHeader needs it"],
    [{ trustedProxies: ["::1"] }, "gateway.proxyHeader: is missing: trustedProxies needs it"],
    [{ auth: { issuer }, allowedHosts: ["mcp.example.com"] }, needsName],
    [{ auth: { issuer }, host: "0.0.0.0" }, needsName],
    [{ auth: { issuer, audience: ["a"] }, host: "0.0.0.0" }],
    [{ auth: { issuer }, publicUrl: "https://mcp.example.com", host: "0.0.0.0" }],
    ...["10.0.0.1", "10.0.0.0/8", "::1", "fd00::/8"].map((network) =>
      [{ proxyHeader, trustedProxies: [network] }] as const
    ),
    ...["10.0.0", "10.0.0.0/33", "fd00::/129", "proxy", "fe80::1%lo", "::1/", "10.0.0.1/8/8"].map((network) =>
      [{ proxyHeader, trustedProxies: [network] }, "gateway.trustedProxies: must be an array of IP addresses"] as const
    )
  ]
  it.each(pairs)("settings of authentication that need each other are both given: %j", (gateway, ...told) => {
    const found = faults(load(servers, gateway))
    assert.strictEqual(found.length, told.length, found.join())
    for (const [i, fault] of told.entries()) assert.include(found[i] ?? "", String(fault))
  })

  it("the items of keys and allowedHosts have no blanks around them", () => {
    const { settings } = valid(load(servers, { keys: [" a key ", "another"], allowedHosts: "a, b" }))
    assert.deepStrictEqual([settings.keys, settings.allowedHosts], [["a key", "another"], ["a", "b"]])
  })

  it("a number without a unit is refused as a duration, and the message asks for the unit", () => {
    const needsUnit = (name: string, value: unknown) =>
      /needs a unit/.test(faults(load(servers, { [name]: value }))[0] ?? "")
    for (const value of [30, "30", " 30 "]) assert.isTrue(needsUnit("requestTimeout", value))
    for (const value of [0, "-1", "", "soon", [30]]) assert.isFalse(needsUnit("requestTimeout", value))
  })

  it("a setting comes from its entry, else the command line, else the environment, else the file", () => {
    const ofFile = { maxInFlight: 2, maxLanes: 2, replayEvents: 2, spares: 2 }
    const text = JSON.stringify({ mcpServers: { a: { command: "run", spares: 5 } }, gateway: ofFile })
    const ofEnvironment = { GATEWAY_MAX_LANES: "3", GATEWAY_REPLAY_EVENTS: "3", GATEWAY_SPARES: "3" }
    const environment = { ...ofEnvironment, GATEWAY_MAX_IN_FLIGHT: "" }
    const read = loadText(text, { environment, flags: { replayEvents: "4", spares: "4" } })
    const { maxInFlight, maxLanes, replayEvents, spares } = processOf(read).settings
    assert.deepStrictEqual([maxInFlight, maxLanes, replayEvents, spares], [2, 3, 4, 5])
  })

  const protecting = ["keys", "adminKeys", "stateKey", "keysFile", "tlsCert", "tlsKey"]
    .concat("authIssuer", "authScopes", "authClientSecret", "scopes", "trustedProxies", "proxyHeader")
  it("an empty variable is refused if its setting protects the gateway, and otherwise counts as unset", () => {
    for (const name of Object.keys(Settings.all)) {
      const variable = Settings.variableName(name)
      const told = protecting.includes(name) ? [variable] : []
      const paths = faults(load(servers, {}, { [variable]: "" })).map((fault) => fault.split(": ")[0])
      assert.deepStrictEqual(paths, told, name)
    }
  })

  it("gives each of several callers half of the sessions, unless maxSessionsPerKey is set", () => {
    const limitOf = (input: Partial<Gateway.GatewayOptions>, hasSeveralCallers: boolean) => {
      const { settings } = Effect.runSync(Gateway.config({ backends: servers, maxSessions: 7, ...input }))
      return Settings.sessionsPerCaller(settings, hasSeveralCallers)
    }
    assert.deepStrictEqual([limitOf({}, true), limitOf({}, false)], [4, Infinity])
    assert.deepStrictEqual([true, false].map((several) => limitOf({ maxSessionsPerKey: 6 }, several)), [6, 6])
  })
})

describe("GATEWAY_ variables", () => {
  it("warns of an unknown GATEWAY_ variable, with the setting that was probably meant", () => {
    const warned = (name: string) => valid(load(servers, {}, { [name]: "5" })).warnings
    const similar = "GATEWAY_MAX_SESION: unknown; did you mean GATEWAY_MAX_SESSIONS?"
    assert.deepStrictEqual(warned("GATEWAY_MAX_SESION"), [similar])
    const other = "GATEWAY_TIMEOUT\\n: unknown; --help lists the variables of the gateway"
    assert.deepStrictEqual(warned("GATEWAY_TIMEOUT\n"), [other])
  })

  it("does not warn of GATEWAY_ variables that Kubernetes sets for a service or that the file uses", () => {
    const services = { GATEWAY_SERVICE_HOST: "x", GATEWAY_SERVICE_PORT_HTTP: "x", GATEWAY_PORT_80_TCP_ADDR: "x" }
    const entry = { command: "run", args: ["${GATEWAY_OWN}", "${env:GATEWAY_OTHER:-x}"] }
    const read = load({ a: entry }, {}, { ...services, GATEWAY_OWN: "x", GATEWAY_OTHER: "x", HOME: "/" })
    assert.deepStrictEqual(valid(read).warnings, [])
  })
})

describe("the options of a program", () => {
  it("a program may give a duration in every form of Effect", () => {
    const forms = [1000, 1_000_000_000n, [1, 0], { seconds: 1 }, "1 second", Duration.seconds(1)] as const
    for (const requestTimeout of forms) {
      const { settings } = Effect.runSync(Gateway.config({ backends: servers, requestTimeout }))
      assert.strictEqual(Duration.toMillis(settings.requestTimeout), 1000)
    }
  })

  it("tells the fault of a server although the name of another begins with its name and a dot", () => {
    assert.deepStrictEqual(faults(load({ "a.b": { command: 1, env: { "K.L": 2, K: 3 } }, a: {} })), [
      "mcpServers[\"a.b\"].command: must be a string: the program to run",
      "mcpServers[\"a.b\"].env[\"K.L\"]: must be a string",
      "mcpServers[\"a.b\"].env.K: must be a string",
      "mcpServers.a: must have a command or a url"
    ])
  })

  it("refuses the options of a program with every fault, each on one line", () => {
    const backends = { "a\n\u001b[2J\u007f\u202e": { command: "x" }, b: { command: "", maxInFlight: 0 } }
    const { faults } = Effect.runSync(Effect.flip(Gateway.config({ backends, maxSessions: 0 })))
    assert.deepStrictEqual(faults, [
      "maxSessions: must be an integer of at least 1",
      `backends["a\\n\\u001b[2J\\u007f\\u202e"]: ${Backends.allowedName}`,
      "backends.b.maxInFlight: must be an integer of at least 1",
      "backends.b.command: must not be empty"
    ])
  })
})

describe("a replica's address", () => {
  const read = (text: string) => Effect.runSync(Effect.option(Loading.replicaAt("replicaAddress", text)))

  it.each([
    ["127.0.0.1:8421", "127.0.0.1"],
    ["gateway_1.example-a.org:8421", "gateway_1.example-a.org"],
    ["[fd00::7]:8421", "fd00::7"],
    ["fd00::7:8421", "fd00::7"]
  ])("a replica's address is a host name or an IP address, and a port: %s", (text, host) => {
    assert.deepStrictEqual(read(text), Option.some({ host, port: 8421 }))
  })

  const wrong = ["http://a:1", " a:1", "a:1 ", "[localhost]:1", "me@a:1", "a:b:1", ":1", "a:", "a:0", "a:65536", ""]
  it.each(wrong)("refuses a wrong address of a replica: %j", (text) => {
    assert.deepStrictEqual(read(text), Option.none())
  })
})
