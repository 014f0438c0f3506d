/** What a configuration means where it is odd: what JSON, URLs and objects allow beside what people write. */
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Option } from "effect"
import * as Config from "../../src/gateway/app/Config.ts"
import * as JsonFault from "../../src/gateway/app/JsonFault.ts"
import * as Loading from "../../src/gateway/app/Loading.ts"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Masking from "../../src/gateway/settings/Masking.ts"
import * as Settings from "../../src/gateway/settings/Settings.ts"
import * as Backends from "../../src/gateway/transports/Backends.ts"

const load = (servers: unknown, gateway: unknown = {}) =>
  Config.load({
    flags: {},
    environment: { HOST: "example.org" },
    file: { name: "file.json", text: JSON.stringify({ mcpServers: servers, gateway }) },
    entries: {}
  })

const faults = (read: ReturnType<typeof load>) =>
  read instanceof Config.InvalidConfig ? read.faults.map((fault) => fault.split(": ")[0]) : []

describe("a slip", () => {
  const told = (text: string, environment: Record<string, string> = {}) => {
    const read = Config.load({ flags: {}, environment, file: { name: "file.json", text }, entries: {} })
    return read instanceof Config.InvalidConfig ? read.faults : []
  }
  const warnings = (text: string, environment: Record<string, string>) => {
    const read = Config.load({ flags: {}, environment, file: { name: "file.json", text }, entries: {} })
    return read instanceof Config.InvalidConfig ? read.faults.map((fault) => `refused: ${fault}`) : read.warnings
  }
  const servers = { a: { command: "run" } }

  it("in the name of a setting is told with what may have been meant", () => {
    const [fault = ""] = told(JSON.stringify({ mcpServers: servers, gateway: { maxSesions: 3 } }))
    // Not with all the others too.
    assert.strictEqual(fault, "gateway.maxSesions: unknown; did you mean maxSessions?")
    const [other = ""] = told(JSON.stringify({ mcpServers: { a: { comand: "run", url: "http://localhost/" } } }))
    assert.match(other, /^mcpServers\.a\.comand: unknown; allowed are /)
  })

  it("that leaves out the other words of a setting's name is told with the whole, if there is one only", () => {
    const guess = (name: string) =>
      told(JSON.stringify({ mcpServers: servers, gateway: { [name]: 3 } }))[0]?.match(/unknown; (.*\?$|allowed are)/)
        ?.[1]
    assert.strictEqual(guess("cert"), "did you mean tlsCert?")
    assert.strictEqual(guess("timeout"), "allowed are")
    assert.strictEqual(guess("prot"), "did you mean port?")
    assert.strictEqual(guess("home"), "allowed are")
  })

  it("in the name of a variable is refused; variables that are nobody's are none of ours", () => {
    const text = JSON.stringify({ mcpServers: servers })
    assert.deepStrictEqual(told(text, { GATEWAY_MAX_SESION: "5" }), [
      "GATEWAY_MAX_SESION: unknown; did you mean GATEWAY_MAX_SESSIONS?"
    ])
    // Kubernetes sets such, for a service of that name.
    assert.deepStrictEqual(told(text, { GATEWAY_SERVICE_HOST: "10.0.0.1", HOME: "/" }), [])
  })

  it("in the name of a variable is a warning where nothing is near, for it may be another program's, and no guess is made from a short name", () => {
    const one = (name: string) => told(JSON.stringify({ mcpServers: servers }), { [name]: "5" })
    assert.deepStrictEqual(one("GATEWAY_MAXSESSIONSPERKEY"), [
      "GATEWAY_MAXSESSIONSPERKEY: unknown; did you mean GATEWAY_MAX_SESSIONS_PER_KEY?"
    ])
    assert.deepStrictEqual(one("GATEWY_PORT"), ["GATEWY_PORT: unknown; did you mean GATEWAY_PORT?"])
    assert.deepStrictEqual(one("GATEWAY_PROT"), ["GATEWAY_PROT: unknown; did you mean GATEWAY_PORT?"])
    const warned = (name: string) => warnings(JSON.stringify({ mcpServers: servers }), { [name]: "5" })
    const strangers = ["CONFIG", "TIMEOUT", "URL", "ENV", "HOME", "POOL", "CERT", "TYPE"]
    for (const name of strangers.map((each) => `GATEWAY_${each}`)) {
      assert.deepStrictEqual(warned(name), [`${name}: unknown; --help lists the variables of the gateway`])
    }
    assert.deepStrictEqual(warned("GATEWAY_\n"), ["GATEWAY_\\n: unknown; --help lists the variables of the gateway"])
    assert.deepStrictEqual(warned("GATEWAY_SERVICE_HOST"), [])
  })

  it("is none in a variable that is another's: without the prefix, in the file, or of a Kubernetes service", () => {
    const text = JSON.stringify({ mcpServers: servers })
    const named = text.replace("run", "run ${GATEWAY_KEY} ${GATEWAY_USER:-me}")
    assert.deepStrictEqual(
      told(named, { GATEWAY_KEY: "5", GATEWAY_USER: "me", MY_GATEWAY_PROT: "1", GATEWAY: "1" }),
      []
    )
    const services = {
      GATEWAY_SERVICE_PORT: "80",
      GATEWAY_SERVICE_PORT_HTTP: "80",
      GATEWAY_PORT_80_TCP: "tcp://10.0.0.7:80",
      GATEWAY_PORT_80_TCP_ADDR: "10.0.0.7",
      GATEWAY_METRICS_PORT: "tcp://10.0.0.7:80"
    }
    assert.deepStrictEqual([told(text, services), warnings(text, services)], [[], []])
    assert.lengthOf(warnings(text, { GATEWAY_METRICS_PORT: "80" }), 1)
  })

  it("is none in the variable of any setting", () => {
    for (const name of Object.keys(Settings.all)) {
      const faults = told(JSON.stringify({ mcpServers: servers }), { [Settings.variableName(name)]: "" })
      assert.notInclude(faults.join("\n"), "unknown", name)
    }
  })

  it("at the root of the file is refused, what other programs have there is not", () => {
    assert.deepStrictEqual(told(JSON.stringify({ mcpServers: servers, gatewy: {} })), [
      "gatewy: unknown; did you mean gateway?"
    ])
    assert.deepStrictEqual(told(JSON.stringify({ mcpServers: servers, $schema: "x", inputs: [] })), [])
    assert.deepStrictEqual(told(JSON.stringify({ mcp: { servers } })), [
      "mcpServers: must be an object of back ends by name"
    ])
  })

  it("tells each name of another client once, with what to do", () => {
    const tools = "the gateway passes on every tool of a server; remove this, and choose tools in the clients"
    const oauth = "the gateway does not sign in; give a token in headers: {\"Authorization\": \"Bearer ${TOKEN}\"}"
    const transport =
      "this is LangChain's name for type: rename it; for \"sse\", give the URL for Streamable HTTP instead"
    const url = "http://localhost/"
    const cases: ReadonlyArray<readonly [entry: object, ...faults: ReadonlyArray<string>]> = [
      [
        { httpUrl: url, headers: {}, timeout: 5, trust: true, includeTools: ["a"], excludeTools: ["b"], oauth: {} },
        "httpUrl: unknown; this is Gemini CLI's name for url: rename it",
        `includeTools: unknown; ${tools}`,
        `excludeTools: unknown; ${tools}`,
        `oauth: unknown; ${oauth}`
      ],
      [
        { serverUrl: url, headers: {}, disabledTools: [] },
        "serverUrl: unknown; this is Windsurf's name for url: rename it",
        `disabledTools: unknown; ${tools}`
      ],
      [{ transport: "streamable_http", url, headers: {} }, `transport: unknown; ${transport}`],
      [{ transport: "stdio", command: "run", args: [] }, `transport: unknown; ${transport}`],
      [{ environment: {}, command: "run" }, "environment: unknown; this is opencode's name for env: rename it"],
      [
        { source: "custom", enabled: false, command: "run" },
        "enabled: unknown; write \"disabled\": true to leave a server out"
      ]
    ]
    for (const [entry, ...faults] of cases) {
      assert.deepStrictEqual(
        told(JSON.stringify({ mcpServers: { a: entry } })),
        faults.map((fault) => `mcpServers.a.${fault}`)
      )
    }
    for (const [name, client] of [["servers", "VS Code"], ["context_servers", "Zed"]] as const) {
      assert.deepStrictEqual(told(JSON.stringify({ [name]: servers, inputs: [] })), [
        `${name}: unknown; this is ${client}'s name for mcpServers: rename it`
      ])
      assert.deepStrictEqual(told(JSON.stringify({ [name]: {}, mcpServers: servers })), [])
    }
  })

  it("tells a wrong name for command or url, and not that the right one is missing", () => {
    const names = (entry: object) =>
      told(JSON.stringify({ mcpServers: { a: entry } })).map((fault) => fault.replace(/; allowed are .*/, ""))
    assert.deepStrictEqual(names({ comand: "run", args: [], env: {} }), [
      "mcpServers.a.comand: unknown; did you mean command?"
    ])
    assert.deepStrictEqual(names({ cmd: "run" }), ["mcpServers.a.cmd: unknown; did you mean command?"])
    assert.deepStrictEqual(names({ uri: "http://x", headers: {}, type: "http" }), [
      "mcpServers.a.uri: unknown; did you mean url?"
    ])
    assert.deepStrictEqual(names({ endpoint: "http://x", headers: {} }), ["mcpServers.a.endpoint: unknown"])
    assert.deepStrictEqual(names({ endpoint: "http://x" }), ["mcpServers.a.endpoint: unknown"])
    assert.deepStrictEqual(names({ headers: {} }), [
      "mcpServers.a.url: must be a string: the URL of an MCP server on Streamable HTTP"
    ])
  })

  it("suggests idleTimeToLive for idleTTL and for other short forms", () => {
    for (const name of ["idleTTL", "idle_ttl", "idleTimeout", "idle", "idleTime"]) {
      const fault = `${name}: unknown; did you mean idleTimeToLive?`
      assert.deepStrictEqual(told(JSON.stringify({ mcpServers: servers, gateway: { [name]: "1 hour" } })), [
        `gateway.${fault}`
      ])
      assert.deepStrictEqual(told(JSON.stringify({ mcpServers: { a: { command: "run", [name]: "1 hour" } } })), [
        `mcpServers.a.${fault}`
      ])
    }
    assert.deepStrictEqual(told(JSON.stringify({ mcpServers: servers }), { GATEWAY_IDLE_TTL: "1 hour" }), [
      "GATEWAY_IDLE_TTL: unknown; did you mean GATEWAY_IDLE_TIME_TO_LIVE?"
    ])
  })

  it("in the name of the servers is told once, however it is written", () => {
    for (const name of ["mcpservers", "mcpServer", "mcp_servers", "mcp-servers"]) {
      assert.deepStrictEqual(told(JSON.stringify({ [name]: servers })), [`${name}: unknown; did you mean mcpServers?`])
    }
  })

  it("may be what nothing reads at the root of the file, which is a warning", () => {
    const text = JSON.stringify({ mcpServers: servers, globalShortcut: "", maxSessions: 5, "a\n": {}, gateway: {} })
    const warningsOf = (text: string) => {
      const read = Config.load({ flags: {}, environment: {}, file: { name: "file.json", text }, entries: {} })
      return read instanceof Config.InvalidConfig ? undefined : read.warnings
    }
    assert.deepStrictEqual(warningsOf(text), [
      "file.json: the gateway does not read \"globalShortcut\", \"maxSessions\", \"a\\n\"; settings belong in \"gateway\""
    ])
    assert.deepStrictEqual(warningsOf(JSON.stringify({ mcpServers: servers, gateway: {} })), [])
  })

  it("that is no JSON is told with its place, and nothing of what stands there", () => {
    const secret = "sk-1234567890"
    assert.deepStrictEqual(told(`{\n  "a": "${secret}, }",\n  "b": [1, 2,]\n}`), [
      "file.json: the file is not JSON: a comma after the last entry; remove it (line 3, column 13)"
    ])
    assert.deepStrictEqual(told(`{\n  // ${secret}\n  "url": "http://a", }`), [
      "file.json: the file is not JSON: a comment, which JSON does not allow; remove it (line 2, column 3)"
    ])
    const cases: ReadonlyArray<readonly [text: string, reason: string, at: string]> = [
      [`{ "a": ${secret} }`, "expected a value", "1, column 8"],
      [`{ ${secret}: 1 }`, "expected a name in double quotes", "1, column 3"],
      [`{ "a" "${secret}" }`, "expected a colon", "1, column 7"],
      [`{ "a": 1\n "${secret}": 2 }`, "expected a comma", "2, column 2"],
      [`{ "a": [1 }`, "expected a comma or the closing bracket", "1, column 11"],
      [`{ "a": "C:\\${secret}" }`, "this string", "1, column 8"],
      [`{ "a": "${secret}\n" }`, "this string", "1, column 8"],
      [`{ "a": https://${secret} }`, "expected a value", "1, column 8"],
      [`{ "a": ["${secret}" , ] }`, "a comma after the last entry", "1, column 25"],
      [`{ "a": 1, /* ${secret} */ }`, "a comment", "1, column 11"],
      [`{\r\n\t# ${secret}\r\n}`, "a comment", "2, column 2"],
      [`{} ${secret}`, "nothing may follow", "1, column 4"],
      ["{ \"a\": {\n", "it ends before it is complete", "2, column 1"],
      ["", "it ends before it is complete", "1, column 1"]
    ]
    for (const [text, reason, at] of cases) {
      const [fault = ""] = told(text)
      assert.isTrue(fault.startsWith(`file.json: the file is not JSON: ${reason}`), fault)
      assert.isTrue(fault.endsWith(` (line ${at})`), fault)
      assert.notInclude(fault, secret)
    }
  })

  it("is found where JSON.parse refuses a text, and only there", () => {
    const text = "{\"a\\u00e9\\n\": [1, -2.5e+3, true], \"b\":{ } ,\t\"c\": [null, [], \"\\\\\"]}"
    const isJson = Option.liftThrowable((text: string): unknown => JSON.parse(text))
    assert.isTrue(Option.isSome(isJson(text)))
    for (let at = 0; at <= text.length; at++) {
      for (const put of ["", ..."{}[],:\"\\/ \n0.-eEtn\u0000\u001f\ufeff\u2028"]) {
        for (const taken of [0, 1]) {
          const damaged = text.slice(0, at) + put + text.slice(at + taken)
          assert.strictEqual(JsonFault.find(damaged) === undefined, Option.isSome(isJson(damaged)), damaged)
        }
      }
    }
    // However deep and long.
    const long = "a\\n".repeat(1_000_000)
    for (const whole of [`${"[".repeat(100_000)}${"]".repeat(100_000)}`, `"${long}"`]) {
      assert.isUndefined(JsonFault.find(whole))
      assert.isDefined(JsonFault.find(whole.slice(0, -1)))
    }
  })

  it("refuses a name that any object of the file has twice, and says where it is again", () => {
    const text = `{
      "inputs": [{ "id": 1 }, { "id": 2, "id": 3 }],
      "mcpServers": {
        "a": { "command": "run", "args": ["args", "args"], "env": { "X": "1", "\\u0058": "2" } },
        "a": { "command": "command" }
      },
      "gateway": { "keys": ["x"], "port": 1, "keys": [], "keys": [] }
    }`
    const again = (line: number, column: number) =>
      `appears twice in its object (again at line ${line}, column ${column}); JSON keeps only the last`
    assert.deepStrictEqual(told(text), [
      `inputs.id: ${again(2, 42)}`,
      `mcpServers.a.env.X: ${again(4, 79)}`,
      `mcpServers.a: ${again(5, 9)}`,
      `gateway.keys: ${again(7, 46)}`,
      `gateway.keys: ${again(7, 58)}`
    ])
    assert.deepStrictEqual(
      told(`{ "mcpServers": { "a": { "command": "a" } }, "mcpServers": {} }`)[0]?.split(": ")[0],
      "mcpServers"
    )
  })

  it("in a text is one fault, also where nothing is left of it", () => {
    const unset = "the environment variable NONE is not set; set it, or write ${NONE:-default}"
    const url = "must be a string: the URL of an MCP server on Streamable HTTP"
    const cases: ReadonlyArray<readonly [entry: unknown, ...faults: ReadonlyArray<string>]> = [
      [{ command: "${NONE}" }, `command: ${unset}`],
      [{ url: "${NONE}" }, `url: ${unset}`],
      [{ url: 5 }, `url: ${url}`],
      [{ command: "" }, "command: must not be empty"],
      [{ command: "${NONE:-}" }, "command: must not be empty"],
      [
        { command: 5, env: { "": "x" } },
        "command: must be a string: the program to run",
        "env: \"\" is not a variable name"
      ]
    ]
    for (const [entry, ...faults] of cases) {
      const paths = faults.map((fault) => `mcpServers.a.${fault}`)
      assert.deepStrictEqual(told(JSON.stringify({ mcpServers: { a: entry } })), paths)
    }
  })

  it("a command that is missing is one fault", () => {
    assert.deepStrictEqual(told(JSON.stringify({ mcpServers: { a: { args: [] } } })), [
      "mcpServers.a.command: must be a string: the program to run"
    ])
  })
})

describe("a replica's address", () => {
  const read = (text: string) => Effect.runSync(Effect.option(Loading.replicaAt("replicaAddress", text)))

  it("is a host name or an address, and a port", () => {
    const hosts: ReadonlyArray<readonly [text: string, host: string]> = [
      ["127.0.0.1:8421", "127.0.0.1"],
      ["gateway_1.example-a.org:8421", "gateway_1.example-a.org"],
      ["[fd00::7]:8421", "fd00::7"],
      ["[::]:8421", "::"],
      ["fd00::7:8421", "fd00::7"]
    ]
    for (const [text, host] of hosts) assert.deepStrictEqual(read(text), Option.some({ host, port: 8421 }), text)
  })

  it("that nobody could reach is refused, and not repeated: it may be a secret that has lost its way", () => {
    const wrong = ["http://127.0.0.1:8421", " 127.0.0.1:8421", "127.0.0.1:8421 ", "[localhost:8421", "localhost]:8421"]
      .concat([
        "[localhost]:8421",
        "a b:8421",
        "a/b:8421",
        "me@a:8421",
        "a:b:8421",
        ":8421",
        "a:",
        "a:0",
        "a:65536",
        "a",
        ""
      ])
    for (const text of wrong) assert.deepStrictEqual(read(text), Option.none(), text)
    const { message } = Effect.runSync(Effect.flip(Loading.replicaAt("replicaListen", "http://a:1\n")))
    assert.strictEqual(
      message,
      "--replica-listen must be host:port, such as 10.0.0.7:8421 or [fd00::7]:8421, without a scheme, a path or blanks."
    )
  })
})

describe("a configuration", () => {
  it("a type that is no text is refused like any other that is not known, however it is nested", () => {
    const url = "http://127.0.0.1:1/mcp"
    const text = (type: string) => `{"mcpServers":{"a":{"url":"${url}","type":${type}}}}`
    for (const type of ["{\"toString\":1}", "[\"http\"]", "[".repeat(20_000) + "]".repeat(20_000)]) {
      const file = { name: "file.json", text: text(type) }
      const read = Config.load({ flags: {}, environment: {}, file, entries: {} })
      assert.deepStrictEqual(faults(read), ["mcpServers.a.type"])
    }
  })

  it("the name of a variable is no name of what objects inherit", () => {
    const read = load({ a: { command: "run-${constructor}", args: ["${__proto__}", "${toString:-x}", "${HOST}"] } })
    assert.deepStrictEqual(faults(read), ["mcpServers.a.command", "mcpServers.a.args[0]"])
  })

  it("credentials of a URL that are not percent-encoded stand for themselves", () => {
    const read = load({ a: { url: "http://me:100%sure@example.org/mcp" } })
    assert.notInstanceOf(read, Config.InvalidConfig)
    const backend = read instanceof Config.InvalidConfig ? undefined : read.backends.get("a")
    assert.strictEqual(backend?.mask("with 100%sure of it"), "with *** of it")
    assert.deepStrictEqual([Masking.percentDecoded("%41%"), Masking.percentDecoded("%41")], ["%41%", "A"])
  })

  it("what is said for all back ends is not meant for one that is no process; what its own entry says is refused", () => {
    const servers = { local: { command: "run" }, remote: { url: "http://127.0.0.1:1/mcp" } }
    const read = load(servers, { spares: 2, stateless: true })
    if (read instanceof Config.InvalidConfig) return assert.fail(read.message)
    const of = (name: string) => {
      const { spares, stateless } = read.backends.get(name)?.settings ?? {}
      return [spares, stateless]
    }
    assert.deepStrictEqual([of("local"), of("remote")], [[2, true], [0, false]])
    const own = { ...servers, remote: { ...servers.remote, spares: 1, stateless: true } }
    assert.deepStrictEqual(faults(load(own)), ["mcpServers.remote.spares", "mcpServers.remote.stateless"])
    assert.deepStrictEqual(faults(load({ ...servers, remote: { ...servers.remote, spares: 0, stateless: false } })), [])
  })

  it("what no request can ever match is refused: hosts with a port, origins without a scheme, wildcards", () => {
    const servers = { a: { command: "run" } }
    for (
      const host of [
        "mcp.example.com:8443",
        "https://mcp.example.com",
        "a b",
        "*",
        "*.example.com",
        "a?b",
        "a#b",
        "a\\b",
        "",
        5
      ]
    ) {
      assert.deepStrictEqual(
        faults(load(servers, { allowedHosts: ["ok.example", host] })),
        ["gateway.allowedHosts"],
        String(host)
      )
    }
    for (
      const origin of [
        "app.example.com",
        "*",
        "https://app.example.com/path",
        "https://",
        "https://*.example.com",
        "https://a.example?x"
      ]
    ) {
      assert.deepStrictEqual(faults(load(servers, { allowedOrigins: [origin] })), ["gateway.allowedOrigins"], origin)
    }
    for (const host of ["", "http://127.0.0.1", "127.0.0.1 "]) {
      assert.deepStrictEqual(faults(load(servers, { host })), ["gateway.host"], host)
    }
    const read = load(servers, {
      allowedHosts: "mcp.example.com, [2001:db8::1],10.0.0.7",
      allowedOrigins: ["https://app.example.com:8443/", "vscode-webview://abc", " http://[::1] ", "null"],
      keys: [" a key ", "another"]
    })
    if (read instanceof Config.InvalidConfig) return assert.fail(read.message)
    const { allowedHosts, allowedOrigins, keys } = read.settings
    assert.deepStrictEqual(allowedHosts, ["mcp.example.com", "[2001:db8::1]", "10.0.0.7"])
    assert.deepStrictEqual(allowedOrigins, [
      "https://app.example.com:8443/",
      "vscode-webview://abc",
      "http://[::1]",
      "null"
    ])
    assert.deepStrictEqual(keys, ["a key", "another"])
  })

  it("gives each key half of the sessions by default, one key all of them, and as many as are set if that is set", () => {
    const limitOf = (input: Partial<Gateway.GatewayOptions>) =>
      Settings.sessionsPerKey(
        Effect.runSync(Gateway.config({ backends: { a: { command: "run" } }, maxSessions: 7, ...input })).settings
      )
    assert.deepStrictEqual(
      [{ keys: ["a", "b"] }, { keys: ["a"] }, {}, { keys: ["a", "b"], maxSessionsPerKey: 7 }].map(limitOf),
      [4, Infinity, Infinity, 7]
    )
  })

  it("an entry says the same in whatever order, and with whatever values of its variables", () => {
    const said = (entry: object, environment: Record<string, string>) => {
      const text = JSON.stringify({ mcpServers: { a: entry } })
      const read = Config.load({ flags: {}, environment, file: { name: "file.json", text }, entries: {} })
      return read instanceof Config.InvalidConfig ? read.message : read.backends.get("a")?.entryText()
    }
    const one = said({ command: "run", args: ["${A}"], env: { X: "1", Y: "${A}" } }, { A: "secret" })
    assert.strictEqual(said({ env: { Y: "${A}", X: "1" }, args: ["${A}"], command: "run" }, { A: "other" }), one)
    assert.notInclude(one ?? "", "secret")
    assert.notStrictEqual(said({ command: "run", args: ["${A}", "more"], env: { X: "1", Y: "${A}" } }, { A: "x" }), one)
    assert.notStrictEqual(said({ command: "run", args: ["${B}"], env: { X: "1", Y: "${A}" } }, { A: "x", B: "x" }), one)
  })

  it("settings have the values of their variables, also within lists and in an entry, and a back end's messages hide them", () => {
    const text = JSON.stringify({
      mcpServers: { a: { command: "run", idleTimeToLive: "${TTL}", spares: "${SPARES:-2}" } },
      gateway: {
        keys: ["${MCP_KEY}", "x${MCP_KEY}"],
        adminKeys: "${ADMIN_KEY}",
        stateKey: "${STATE}",
        port: "${PORT:-8421}",
        requestTimeout: "${NONE:-7} seconds"
      }
    })
    const environment = { MCP_KEY: "s3cret-key", ADMIN_KEY: "one,two", STATE: "k".repeat(32), TTL: "3 minutes" }
    const read = Config.load({ flags: {}, environment, file: { name: "file.json", text }, entries: {} })
    if (read instanceof Config.InvalidConfig) return assert.fail(read.message)
    const { adminKeys, keys, port, requestTimeout, stateKey } = read.settings
    assert.deepStrictEqual([keys, adminKeys], [["s3cret-key", "xs3cret-key"], ["one", "two"]])
    assert.deepStrictEqual([port, Duration.toSeconds(requestTimeout), stateKey], [8421, 7, "k".repeat(32)])
    const backend = read.backends.get("a")
    assert.deepStrictEqual(
      [backend?.settings.spares, Duration.toMinutes(backend?.settings.idleTimeToLive ?? 0)],
      [2, 3]
    )
    assert.strictEqual(backend?.mask("it says s3cret-key"), "it says ***")
  })

  it("a setting whose variable is not set is refused, once, and never the name of the variable taken for its value", () => {
    const unset = (name: string) => `the environment variable ${name} is not set; set it, or write \${${name}:-default}`
    const gateway = { keys: ["a", "${KEY}"], stateKey: "${STATE}", requestTimeout: "${TIME}" }
    const read = load({ a: { command: "run", maxInFlight: "${MAX}" } }, gateway)
    assert.deepStrictEqual(read instanceof Config.InvalidConfig ? read.faults : [], [
      `gateway.keys[1]: ${unset("KEY")}`,
      `gateway.stateKey: ${unset("STATE")}`,
      `gateway.requestTimeout: ${unset("TIME")}`,
      `mcpServers.a.maxInFlight: ${unset("MAX")}`
    ])
  })

  it("expands a variable that is written with env:, and hides its value", () => {
    const entry = { command: "run", args: ["${env:HOST}", "${env:NONE:-x}", "${ ${HOST}"], env: { A: "-${env:HOST}-" } }
    const text = JSON.stringify({ mcpServers: { a: entry }, gateway: { keys: ["${env:GATEWAY_OWN}"] } })
    const environment = { HOST: "example.org", GATEWAY_OWN: "k".repeat(16) }
    const read = Config.load({ flags: {}, environment, file: { name: "file.json", text }, entries: {} })
    if (read instanceof Config.InvalidConfig) return assert.fail(read.message)
    const { mask, target } = read.backends.get("a") ?? assert.fail()
    if (target._tag === "Http") return assert.fail()
    assert.deepStrictEqual(target.command.args, ["example.org", "x", "${ example.org"])
    assert.deepStrictEqual(target.command.env, { A: "-example.org-" })
    assert.deepStrictEqual([mask("at example.org"), read.settings.keys], ["at ***", [environment.GATEWAY_OWN]])
    assert.deepStrictEqual(read.warnings, [])
    const unset = load({ a: { command: "${env:NONE}" } })
    assert.include(
      unset instanceof Config.InvalidConfig ? unset.faults[0] : "",
      "the environment variable NONE is not set"
    )
  })

  it("refuses what other clients put in for ${…} by the client's name, and passes on what a shell reads", () => {
    const told = (text: string) => {
      const read = load({ a: { url: "http://localhost/", headers: { authorization: `Bearer ${text}` } } })
      return read instanceof Config.InvalidConfig ? read.faults : []
    }
    const cases: ReadonlyArray<readonly [text: string, shown: string, whose: string]> = [
      ["${input:s3cret}", "${input:…}", "VS Code's, which asks its user"],
      ["${command:s3cret}", "${command:…}", "VS Code's"],
      ["${workspaceFolder}", "${workspaceFolder}", "VS Code's and Cursor's"],
      ["${workspaceFolder:s3cret}", "${workspaceFolder:…}", "VS Code's and Cursor's"],
      ["${userHome}", "${userHome}", "VS Code's and Cursor's"],
      ["${/}", "${/}", "VS Code's and Cursor's"],
      ["${file:/s3cret}", "${file:…}", "VS Code's and Windsurf's"],
      ["${user_config.s3cret}", "${user_config.…}", "Claude Desktop's, for its extensions"],
      ["${vault:s3cret}", "${vault:…}", "unknown here"]
    ]
    for (const [text, shown, whose] of cases) {
      assert.deepStrictEqual(told(text), [
        `mcpServers.a.headers.authorization: must not have ${shown}: it is ${whose}; write the value, or \${NAME} for an environment variable`
      ])
    }
    const script = "${A%.*} ${A:+x} ${A:0:3} ${#A} ${A[@]} ${} ${a ? b : c}"
    const read = load({ a: { command: "sh", args: ["-c", script] } })
    if (read instanceof Config.InvalidConfig) return assert.fail(read.message)
    const { target } = read.backends.get("a") ?? assert.fail()
    assert.deepStrictEqual(target._tag === "Stdio" ? target.command.args : [], ["-c", script])
  })

  it("warns of a value that is another client's variable without ${…}, and does not repeat it", () => {
    const env = { A: "$SECRET", B: "{env:SECRET}", C: "%SECRET%", D: "pa$word", E: "$", F: "a $B c" }
    const read = load({
      a: { command: "run", env },
      b: { url: "http://x/", headers: { Authorization: "Bearer $SECRET" } }
    })
    assert.deepStrictEqual(
      read instanceof Config.InvalidConfig ? [] : read.warnings,
      ["a.env.A", "a.env.B", "a.env.C", "b.headers.Authorization"].map((at) =>
        `mcpServers.${at}: looks like a variable, but is used literally; write a variable as \${NAME}`
      )
    )
  })

  it("a default of a variable that holds another variable is refused, for it would be taken as it stands", () => {
    assert.deepStrictEqual(faults(load({ a: { command: "run", args: ["${A:-${B:-z}}"] } })), ["mcpServers.a.args[0]"])
    assert.deepStrictEqual(faults(load({ a: { command: "run", args: ["${HOST:-${B}}", "${A:-$z}"] } })), [])
  })

  it("a duration in a file is a text; in a program it is whatever Effect takes for one", () => {
    for (const value of [5, true, null, [1, 0], { seconds: 1 }]) {
      assert.deepStrictEqual(faults(load({ a: { command: "x" } }, { requestTimeout: value })), [
        "gateway.requestTimeout"
      ])
    }
    for (
      const requestTimeout of [1000, 1_000_000_000n, [1, 0], { seconds: 1 }, "1 second", Duration.seconds(1)] as const
    ) {
      const { settings } = Effect.runSync(Gateway.config({ backends: { a: { command: "x" } }, requestTimeout }))
      assert.strictEqual(Duration.toMillis(settings.requestTimeout), 1000)
    }
  })

  it("serves a name that is not safe in a URL under one that is, with a warning, unless another server has that", () => {
    const entry = { command: "run" }
    const read = load({ "My Files": entry, "Über/x!": entry, "_a_": entry, "plain": entry })
    if (read instanceof Config.InvalidConfig) return assert.fail(read.message)
    assert.deepStrictEqual([...read.backends.keys()], ["My-Files", "Uber-x", "a_", "plain"])
    assert.isTrue([...read.backends].every(([name, backend]) => backend.name === name))
    assert.deepStrictEqual(
      read.warnings.map((warning) => warning.split(", because ")),
      [["My Files", "My-Files"], ["Über/x!", "Uber-x"], ["_a_", "a_"]].map(([given, name]) => [
        `mcpServers.${given}: served at /mcp/${name}`,
        Backends.allowedName
      ])
    )
    const clash = load({ "a b": entry, "a-b": entry, "a/b": entry, "日本": entry })
    assert.deepStrictEqual(clash instanceof Config.InvalidConfig ? clash.faults : [], [
      "mcpServers.a b: needs another name: another server already has \"a-b\" in its URL",
      "mcpServers.a/b: needs another name: another server already has \"a-b\" in its URL",
      `mcpServers.日本: ${Backends.allowedName}`
    ])
  })

  it("leaves out an entry that is disabled, whatever is in it; one must be left", () => {
    const read = load({ a: { command: "run", disabled: false }, b: { command: "${NONE}", disabled: true, odd: 1 } })
    if (read instanceof Config.InvalidConfig) return assert.fail(read.message)
    assert.deepStrictEqual([[...read.backends.keys()], read.warnings], [["a"], []])
    assert.deepStrictEqual(
      load({ a: { command: "run", disabled: true } }),
      new Config.InvalidConfig({
        faults: ["mcpServers: must name at least one back end that is not disabled"]
      })
    )
    const slips = { a: { command: "run", disabled: "true" }, b: { command: "run", disable: true } }
    assert.deepStrictEqual(faults(load(slips)), ["mcpServers.a.disabled", "mcpServers.b.disable"])
  })

  it("warns of what only clients read in an entry, and refuses what is nearly ours", () => {
    const ofClients = {
      autoApprove: ["x"],
      alwaysAllow: [],
      trust: true,
      timeout: 60,
      description: "x",
      envFile: ".env"
    }
    const read = load({ a: { command: "run", ...ofClients }, b: { url: "http://localhost/", timeout: 5 } })
    if (read instanceof Config.InvalidConfig) return assert.fail(read.message)
    const told = [...Object.keys(ofClients).map((name) => `mcpServers.a.${name}`), "mcpServers.b.timeout"]
    assert.deepStrictEqual(read.warnings.map((warning) => warning.split(": the gateway does not read it; ")[0]), told)
    assert.include(read.warnings.join("\n"), "list its variables in env")
    const slips = { a: { command: "run", startTimeuot: "1 second", envs: {}, timeouts: 5 } }
    assert.deepStrictEqual(
      faults(load(slips)),
      ["startTimeuot", "envs", "timeouts"].map((name) => `mcpServers.a.${name}`)
    )
  })

  it("a back end on HTTP with SSE is refused, and told which of its URLs to give", () => {
    const read = load({ a: { url: "http://localhost/sse", type: "sse" } })
    assert.match(
      read instanceof Config.InvalidConfig ? read.faults[0] ?? "" : "",
      /^mcpServers\.a\.type: must be "http" .* does not support HTTP with SSE \(2024-11-05\).* for Streamable HTTP$/
    )
  })

  it("takes short durations such as 5m, and tells which units there are", () => {
    const written = { "5m": 300, "5 m": 300, " 1.5h ": 5400, "30s": 30, "250ms": 0.25, "2d": 172_800, "1w": 604_800 }
    for (const [text, seconds] of Object.entries({ ...written, "5minutes": 300, "1 second": 1 })) {
      const read = load({ a: { command: "x" } }, { requestTimeout: text })
      if (read instanceof Config.InvalidConfig) return assert.fail(read.message)
      assert.strictEqual(Duration.toSeconds(read.settings.requestTimeout), seconds, text)
    }
    for (const text of ["5M", "5mo", "5 constructor", "1h30m", "m", "-5m", "0s"]) {
      const read = load({ a: { command: "x" } }, { requestTimeout: text })
      assert.deepStrictEqual(read instanceof Config.InvalidConfig ? read.faults : [], [
        "gateway.requestTimeout: must be a duration greater than zero, such as \"30 minutes\", \"5m\" or \"infinity\" " +
        "(units: millis or ms, seconds or s, minutes or m, hours or h, days or d, weeks or w)"
      ], text)
    }
  })

  it("a duration without its unit is told so, where it would be one in seconds, and not repeated", () => {
    const needed = (name: string, value: unknown) => {
      const read = load({ a: { command: "x" } }, { [name]: value })
      return read instanceof Config.InvalidConfig ? read.faults[0]?.match(/; it needs a unit, (.*)$/)?.[1] : "valid"
    }
    for (const value of [30, "30", " 30 "]) assert.strictEqual(needed("requestTimeout", value), "such as \"seconds\"")
    assert.strictEqual(needed("closeGrace", 0), "such as \"seconds\"")
    for (const value of [0, -1, "-1", "", "soon", "1 fortnight", null, [30]]) {
      assert.isUndefined(needed("requestTimeout", value), String(value))
    }
    assert.isUndefined(needed("maxSessions", 0))
  })

  it("an empty variable counts as unset; where it was to hold keys, or to name a file of them or of TLS, it is refused, for nobody would notice", () => {
    const text = JSON.stringify({ mcpServers: { a: { command: "run" } }, gateway: { port: 5, replicaAddress: "a:1" } })
    const read = (name: string) =>
      Config.load({
        flags: {},
        environment: { [Settings.variableName(name)]: "" },
        file: { name: "file.json", text },
        entries: {}
      })
    for (const name of Object.keys(Settings.all)) {
      assert.deepStrictEqual(
        faults(read(name)),
        ["keys", "adminKeys", "stateKey", "keysFile", "tlsCert", "tlsKey"].includes(name)
          ? [Settings.variableName(name)]
          : [],
        name
      )
    }
    for (const name of ["port", "replicaAddress"]) {
      const loaded = read(name)
      if (loaded instanceof Config.InvalidConfig) return assert.fail(loaded.message)
      assert.deepStrictEqual([loaded.settings.port, loaded.settings.replicaAddress], [5, "a:1"])
    }
  })

  it("a file of keys or of TLS without a name is refused wherever it is said, also as the default of a variable, and told what to do", () => {
    const faultsOf = (gateway: object, more: Partial<Config.Sources> = {}) => {
      const text = JSON.stringify({ mcpServers: { a: { command: "run" } }, gateway })
      const read = Config.load({ flags: {}, environment: {}, file: { name: "file.json", text }, entries: {}, ...more })
      return read instanceof Config.InvalidConfig ? read.faults : []
    }
    const told = "must be the path of a file, and not empty; leave the setting out if there is no file"
    for (const name of ["keysFile", "tlsCert", "tlsKey"]) {
      const [file, flag] = [`gateway.${name}: ${told}`, `--${Settings.flagName(name)}: ${told}`]
      const variable = Settings.variableName(name)
      assert.deepStrictEqual(faultsOf({ [name]: "" }), [file])
      assert.deepStrictEqual(faultsOf({ [name]: "${F:-}" }), [file])
      assert.deepStrictEqual(faultsOf({ [name]: "${F}" }, { environment: { F: "" } }), [file])
      assert.deepStrictEqual(faultsOf({ [name]: "k" }, { flags: { [name]: "" } }), [flag])
      assert.deepStrictEqual(faultsOf({ [name]: "k" }, { environment: { [variable]: "" } }), [`${variable}: ${told}`])
      assert.deepStrictEqual(faultsOf({ [name]: "${F:-k}" }), [])
    }
    assert.deepStrictEqual(faultsOf({}), [])
  })

  it("a name in a fault is on one line, whatever is in it", () => {
    const { message } = Effect.runSync(
      Effect.flip(Gateway.config({ backends: { "a\n\u001b[2J\u007f\u009b\u202e": { command: "x" } } }))
    )
    assert.deepStrictEqual(message.split("\n").length, 2)
    assert.include(message, "backends.a\\n\\u001b[2J\\u007f\\u009b\\u202e: ")
  })
})
