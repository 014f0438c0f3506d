/**
 * The files of `src/gateway/deploy`, as far as this machine can check them. Each is read, and the gateway's command checks the flags
 * and variables in it. `metrics.test.ts` checks the alerts and the dashboard.
 */
import { Duration, Schema } from "effect"
import { Yaml } from "effect/encoding"
import { execFileSync, spawn, spawnSync } from "node:child_process"
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createServer, request } from "node:http"
import { tmpdir } from "node:os"
import { basename, join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import manifest from "../../package.json" with { type: "json" }
import * as Cluster from "../../src/gateway/cluster/Cluster.ts"
import * as Settings from "../../src/gateway/settings/Settings.ts"
import * as Programs from "../../src/gateway/transports/Programs.ts"
import * as Documents from "../kit/documents.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { areInstalled } from "../kit/programs.ts"

const directory = new URL("../../src/gateway/deploy/", import.meta.url)
const folder = mkdtempSync(join(tmpdir(), "deployment-"))
const { args, command } = Kit.counter()
const servers = join(folder, "servers.json")
const keys = join(folder, "keys")
const read = (name: string): string => Documents.read(`src/gateway/deploy/${name}`)
/** Stands for each value that a file takes from elsewhere. */
const secret = "a secret of at least thirty-two characters"
const defaults = { port: String(Settings.gatewaySettings.port.default), replica: "8421" }

let known: ReadonlySet<string>
beforeAll(async () => {
  writeFileSync(servers, JSON.stringify({ mcpServers: { counter: { command, args } } }))
  writeFileSync(keys, `${secret}\n`, { mode: 0o600 })
  const { exit, output } = await runInProcess(["--help"])
  assert.strictEqual(exit, 0)
  known = new Set(output.match(/(?:--[a-z-]+|\bGATEWAY_[A-Z_]+|\bDATABASE_URL)(?=[ ,.;)]|$)/gm))
})
afterAll(() => rmSync(folder, { recursive: true }))

/** Which of these arguments and variables the command's help does not know. */
const unknown = (args: ReadonlyArray<string>, env: Readonly<Record<string, string>>): ReadonlyArray<string> =>
  [...args.filter((arg) => arg.startsWith("--")), ...Object.keys(env)].filter((name) => !known.has(name))

/** The command's verdict on its arguments and variables: `valid`, or every fault. */
const checked = async (args: ReadonlyArray<string>, env: Record<string, string>): Promise<string> =>
  (await runInProcess(["--check", ...args], env)).output.trim()
const valid = "The configuration is valid. Back ends: counter"

/** The lines `Name=value` of a unit, `[Section]` and comments. */
const unit = read("mcp-gateway.service")
const inUnit = (name: string): string => new RegExp(`^${name}=(.*)$`, "m").exec(unit)?.[1] ?? ""

const dockerfile = read("Dockerfile")
const instruction = (name: string): ReadonlyArray<string> =>
  [...dockerfile.matchAll(new RegExp(`^${name} (.*)$`, "gm"))].map(([, rest = ""]) => rest)
const entrypoint = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Array(Schema.String)))(
  instruction("ENTRYPOINT")[0]
)
/** The arguments of the image's gateway, with the file that is there on this machine. */
const inImage = (more: ReadonlyArray<string>): ReadonlyArray<string> =>
  [...entrypoint.slice(1), ...more].map((arg) => arg === "servers.json" ? servers : arg)

const Texts = Schema.Record(Schema.String, Schema.String)
/** A service that starts again with the Docker daemon, too. */
const Restart = Schema.Literal("unless-stopped")
const Replica = Schema.Struct({
  build: Schema.Literal("."),
  image: Schema.String,
  init: Schema.Literal(true),
  restart: Restart,
  hostname: Schema.String,
  command: Schema.Array(Schema.String),
  environment: Texts,
  stop_grace_period: Schema.String
})
const Compose = Schema.Struct({
  services: Schema.Struct({
    database: Schema.Struct({
      image: Schema.String,
      restart: Restart,
      environment: Texts,
      volumes: Schema.Array(Schema.String)
    }),
    one: Replica,
    two: Replica,
    balancer: Schema.Struct({
      image: Schema.Literal("caddy:2"),
      restart: Restart,
      ports: Schema.Tuple([Schema.String]),
      configs: Schema.Tuple([
        Schema.Struct({ source: Schema.Literal("balancer"), target: Schema.Literal("/etc/caddy/Caddyfile") })
      ])
    })
  }),
  volumes: Schema.Record(Schema.String, Schema.Unknown),
  configs: Schema.Struct({ balancer: Schema.Struct({ content: Schema.String }) })
})
const Variable = Schema.Union([
  Schema.Struct({ name: Schema.String, value: Schema.String }),
  Schema.Struct({
    name: Schema.String,
    valueFrom: Schema.Union([
      Schema.Struct({ fieldRef: Schema.Struct({ fieldPath: Schema.Literal("status.podIP") }) }),
      Schema.Struct({ secretKeyRef: Schema.Struct({ name: Schema.String, key: Schema.String }) })
    ])
  })
])
const Pod = Schema.Struct({
  terminationGracePeriodSeconds: Schema.Number,
  shareProcessNamespace: Schema.Literal(true),
  containers: Schema.Tuple([Schema.Struct({
    name: Schema.String,
    image: Schema.String,
    args: Schema.Array(Schema.String),
    env: Schema.Array(Variable),
    ports: Schema.Array(Schema.Struct({ containerPort: Schema.Number })),
    readinessProbe: Schema.Struct({
      httpGet: Schema.Struct({
        path: Schema.String,
        port: Schema.Number,
        httpHeaders: Schema.Tuple([Schema.Struct({ name: Schema.Literal("Host"), value: Schema.String })])
      }),
      periodSeconds: Schema.Number
    })
  })])
})
const Labels = Schema.Struct({ app: Schema.String })
const Named = Schema.Struct({ name: Schema.String })
const Port = Schema.Struct({ port: Schema.Number })
const Deployment = Schema.Struct({
  apiVersion: Schema.Literal("apps/v1"),
  kind: Schema.Literal("Deployment"),
  metadata: Named,
  spec: Schema.Struct({
    replicas: Schema.Number,
    selector: Schema.Struct({ matchLabels: Labels }),
    template: Schema.Struct({ metadata: Schema.Struct({ labels: Labels }), spec: Pod })
  })
})
const Service = Schema.Struct({
  apiVersion: Schema.Literal("v1"),
  kind: Schema.Literal("Service"),
  metadata: Named,
  spec: Schema.Struct({
    selector: Labels,
    ports: Schema.Tuple([Schema.Struct({ port: Schema.Number, targetPort: Schema.Number })])
  })
})
const Selector = Schema.Struct({ podSelector: Schema.Struct({ matchLabels: Labels }) })
const NetworkPolicy = Schema.Struct({
  apiVersion: Schema.Literal("networking.k8s.io/v1"),
  kind: Schema.Literal("NetworkPolicy"),
  metadata: Named,
  spec: Schema.Struct({
    ...Selector.fields,
    policyTypes: Schema.Tuple([Schema.Literal("Ingress")]),
    ingress: Schema.Tuple([
      Schema.Struct({ ports: Schema.Tuple([Port]) }),
      Schema.Struct({ from: Schema.Tuple([Selector]), ports: Schema.Tuple([Port]) })
    ])
  })
})
const Manifest = Schema.Tuple([Deployment, Service, NetworkPolicy])
const Prometheus = Schema.Struct({
  rule_files: Schema.Array(Schema.String),
  scrape_configs: Schema.Tuple([Schema.Struct({
    job_name: Schema.String,
    authorization: Schema.Struct({ credentials_file: Schema.String }),
    static_configs: Schema.Tuple([Schema.Struct({ targets: Schema.Tuple([Schema.String]) })])
  })])
})

/** The documents of a text in YAML. A field that the schema does not know is a fault. */
const decode = <A>(schema: Schema.Codec<A, unknown>, value: unknown): A =>
  Schema.decodeUnknownSync(schema, { onExcessProperty: "error" })(value)
const compose = decode(Compose, Yaml.parse(read("compose.yaml")))
const [deployment, service, policy] = decode(Manifest, read("kubernetes.yaml").split("\n---\n").map(Yaml.parse))
const { containers: [container], terminationGracePeriodSeconds } = deployment.spec.template.spec

const podIp = "10.0.0.7"
const inPod: Record<string, string> = Object.fromEntries(container.env.map((variable) => [
  variable.name,
  "value" in variable ? variable.value : "fieldRef" in variable.valueFrom ? podIp : secret
]))

describe("the systemd unit", () => {
  it("is a unit that systemd verifies without a warning", () => {
    assert.match(unit, /^(# .*\n)*(\[(Unit|Service|Install)\]\n((# .*|[A-Z]\w+=\S.*)\n)+\n?)+$/)
    if (Programs.find("systemd-analyze", undefined, process.env["PATH"]) === undefined) return
    const file = join(folder, "mcp-gateway.service")
    writeFileSync(file, unit.replaceAll("/usr/bin/node", process.execPath))
    const { status, stderr, stdout } = spawnSync("systemd-analyze", ["verify", "--man=no", file], { encoding: "utf8" })
    assert.deepStrictEqual([stdout, stderr, status], ["", "", 0])
  })

  it("starts the package's command with flags and variables that the command knows", async () => {
    const [node, ...words] = inUnit("ExecStart").split(" ")
    assert.strictEqual(basename(node ?? ""), "node")
    const at = words.findIndex((word) => !word.startsWith("-"))
    assert.strictEqual(
      words[at],
      join("/opt/mcp/node_modules", manifest.name, manifest.bin["effect-session-pool"])
    )
    const args = words.slice(at + 1)
    assert.deepStrictEqual(args, ["--config", "/etc/mcp/servers.json"])
    // systemd hands the file of keys over, because the gateway's user may not read it in `/etc`.
    const [credential = "", file] = inUnit("LoadCredential").split(":")
    const { HOME: kept, ...env } = Object.fromEntries(
      [...unit.matchAll(/^Environment=(\w+)=(.*)$/gm)].map(([, name = "", value = ""]) => [name, value])
    )
    assert.deepStrictEqual(env, { GATEWAY_KEYS_FILE: `%d/${credential}` })
    assert.strictEqual(file, "/etc/mcp/keys")
    assert.strictEqual(kept, `%S/${inUnit("StateDirectory")}`)
    assert.deepStrictEqual(unknown(args, { ...env, GATEWAY_ADMIN_KEYS: "" }), [])
    assert.include(unit, " GATEWAY_ADMIN_KEYS=")
    assert.strictEqual(inUnit("EnvironmentFile"), "/etc/mcp/environment")
    assert.strictEqual(
      await checked(["--config", servers], { GATEWAY_KEYS_FILE: keys, GATEWAY_ADMIN_KEYS: secret }),
      valid
    )
    // Node refuses an option that it does not know.
    execFileSync(process.execPath, [...words.slice(0, at), "--eval", "0"])
  })
})

describe("the Dockerfile", () => {
  const variables = [...(/docker run .*/.exec(dockerfile)?.[0] ?? "").matchAll(/-e (\w+)=(\S+)/g)]
    .map(([, name = "", value = ""]) => [name, value.replace("…", secret)] as const)

  it("installs the package and its peers, on a Node that the package takes", () => {
    const packages = (instruction("RUN")[0] ?? "").replace("npm install ", "").split(" ")
    assert.sameMembers(packages, [manifest.name, ...Object.keys(manifest.peerDependencies)])
    const [, major = ""] = /^node:(\d+)-slim$/.exec(instruction("FROM")[0] ?? "") ?? []
    const [, least = ""] = /^>=(\d+)\./.exec(manifest.engines.node) ?? []
    assert.isAtLeast(Number(major), Number(least))
  })

  it("starts the package's command with flags and variables that the command knows, on the exposed port", async () => {
    assert.deepStrictEqual(Object.keys(manifest.bin).map((name) => `node_modules/.bin/${name}`), [entrypoint[0]])
    assert.deepStrictEqual(instruction("EXPOSE"), [defaults.port])
    assert.include(dockerfile, ` -p ${defaults.port}:${defaults.port} `)
    assert.include(instruction("COPY"), "--chown=node servers.json .")
    assert.lengthOf(variables, 3)
    const env = Object.fromEntries(variables)
    assert.deepStrictEqual(unknown(entrypoint.slice(1), env), [])
    assert.strictEqual(await checked(inImage([]), env), valid)
    const [options = ""] = instruction("ENV")
    execFileSync(process.execPath, ["--eval", "0"], { env: { NODE_OPTIONS: options.replace("NODE_OPTIONS=", "") } })
  })
})

describe("the Compose file", () => {
  const { balancer, database, one, two } = compose.services

  it("starts two replicas of the Dockerfile's image, each of which the other reaches by its name", async () => {
    for (const [name, { command, environment, hostname, image }] of Object.entries({ one, two })) {
      assert.strictEqual(hostname, name)
      assert.include(dockerfile, `docker build -t ${image} .`)
      assert.strictEqual(command[command.indexOf("--replica-address") + 1], `${name}:${defaults.replica}`)
      assert.strictEqual(command[command.indexOf("--replica-listen") + 1], `0.0.0.0:${defaults.replica}`)
      assert.deepStrictEqual(unknown(command, environment), [])
      const env = Object.fromEntries(
        Object.entries(environment).map(([name, value]) => [name, value.replace(/^\$\{\w+\}$/, secret)])
      )
      assert.strictEqual(new URL(env["DATABASE_URL"] ?? "").hostname, "database")
      // Without the flag `--cluster` the command would need no database.
      assert.strictEqual(await checked(inImage(command), env), valid)
      const lacking = await checked(inImage(command), { ...env, DATABASE_URL: "" })
      assert.include(lacking, "--cluster needs more:\n  DATABASE_URL")
    }
  })

  it("keeps the database in a volume, at the path of PostgreSQL 17", () => {
    assert.strictEqual(database.image, "postgres:17")
    const mounts = database.volumes.map((volume) => volume.split(":"))
    assert.deepStrictEqual(mounts.map(([, path]) => path), ["/var/lib/postgresql/data"])
    assert.deepStrictEqual(mounts.map(([name]) => name), Object.keys(compose.volumes))
  })

  it.skipIf(!areInstalled("openssl"))("says how to make the file .env, which has each value that it takes", () => {
    const make = read("compose.yaml").split("\n").find((line) => line.endsWith(" > .env"))?.slice(1) ?? ""
    execFileSync("bash", ["-c", make], { cwd: folder })
    const made = readFileSync(join(folder, ".env"), "utf8").trimEnd().split("\n").map((line) => line.split("="))
    const taken = Object.values(one.environment).filter((value) => value.startsWith("${"))
    assert.deepStrictEqual(made.map(([name]) => `\${${name}}`), taken)
    for (const [, value = ""] of made) assert.lengthOf(value, 64)
  })

  it("publishes a balancer that sends to both if they are ready, and closes idle connections before they do", () => {
    assert.deepStrictEqual(balancer.ports, [`${defaults.port}:${defaults.port}`])
    const [, targets = "", directives = ""] =
      /^:8420 \{\n {2}reverse_proxy ([^{]*) \{\n([\s\S]*)\n {2}\}\n\}\n$/.exec(compose.configs.balancer.content) ?? []
    assert.deepStrictEqual(targets.split(" "), [one, two].map(({ hostname }) => `${hostname}:${defaults.port}`))
    const directive = (name: string) => new RegExp(`^ +${name} (.*)$`, "m").exec(directives)?.[1]
    const { httpHeaders: [host], path } = container.readinessProbe.httpGet
    assert.deepStrictEqual([directive("health_uri"), directive(host.name)], [path, host.value])
    // Twice while a replica that stops still serves.
    assert.strictEqual(directive("health_interval"), "1s")
    assert.isAtLeast(Duration.toSeconds(Settings.gatewaySettings.leaveDelay.default), 2)
    assert.strictEqual(directive("keepalive"), "60s")
    assert.isAbove(Duration.toSeconds(Settings.gatewaySettings.keepAliveTimeout.default), 60)
  })
})

describe("the Kubernetes manifest", () => {
  it("starts replicas with flags and variables that the command knows", async () => {
    const own = Object.keys(inPod).filter((name) => container.args.some((arg) => arg.includes(`$(${name})`)))
    assert.deepStrictEqual(own, ["POD_IP"])
    const env = Object.fromEntries(Object.entries(inPod).filter(([name]) => !own.includes(name)))
    assert.deepStrictEqual(unknown(container.args, env), [])
    const args = container.args.map((arg) => arg.replace("$(POD_IP)", podIp))
    assert.include(args, `${podIp}:${defaults.replica}`)
    const url = { DATABASE_URL: "postgresql://postgres@database/postgres" }
    assert.strictEqual(await checked(inImage(args), { ...env, ...url }), valid)
    assert.strictEqual(deployment.spec.replicas, 2)
  })

  it("says how to make the secret that the pod reads", () => {
    const refs = container.env.flatMap((variable) =>
      "valueFrom" in variable && "secretKeyRef" in variable.valueFrom ? [variable.valueFrom.secretKeyRef] : []
    )
    const text = read("kubernetes.yaml")
    assert.lengthOf(refs, 4)
    for (const { key, name } of refs) {
      assert.include(text, `kubectl create secret generic ${name} `)
      assert.include(text, ` --from-literal=${key}=`)
    }
  })

  it("serves the pods' port, and lets only replicas reach the port between them", () => {
    const { labels } = deployment.spec.template.metadata
    const { from: [others], ports: [between] } = policy.spec.ingress[1]
    const selectors = [
      deployment.spec.selector.matchLabels,
      service.spec.selector,
      policy.spec.podSelector.matchLabels,
      others.podSelector.matchLabels
    ]
    for (const selector of selectors) assert.deepStrictEqual(selector, labels)
    const [{ port, targetPort }] = service.spec.ports
    const [open] = policy.spec.ingress[0].ports
    assert.deepStrictEqual([port, targetPort, open.port].map(String), Array(3).fill(defaults.port))
    assert.strictEqual(String(between.port), defaults.replica)
    assert.deepStrictEqual(container.ports.map(({ containerPort }) => containerPort), [open.port, between.port])
  })
})

describe("a gateway that runs as the image does", () => {
  const gateway = Kit.run([...inImage(["--port", "0"])], {
    GATEWAY_KEYS: secret,
    GATEWAY_ADMIN_KEYS: "the operator's",
    GATEWAY_ALLOWED_HOSTS: inPod["GATEWAY_ALLOWED_HOSTS"] ?? ""
  })
  afterAll(async () => {
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })
  const status = async (path: string, headers: Record<string, string>): Promise<number | undefined> => {
    const { port } = new URL(await Kit.urlOf(gateway))
    return new Promise((resolve, reject) => {
      request({ host: "127.0.0.1", port, path, headers }, (response) => resolve(response.resume().statusCode))
        .on("error", reject).end()
    })
  }

  it("answers the readiness probe, because the probe gives a name that is served", async () => {
    const { httpHeaders: [host], path, port } = container.readinessProbe.httpGet
    assert.strictEqual(String(port), defaults.port)
    assert.strictEqual(await status(path, { [host.name]: host.value }), 200)
    assert.strictEqual(await status(path, { Host: `other.example.com:${port}` }), 403)
    assert.strictEqual(await status(`${path}-not`, { [host.name]: host.value }), 404)
  })

  it("answers Prometheus with an operator's key only; the file of the rules lies beside its configuration", async () => {
    const { rule_files, scrape_configs: [{ static_configs: [{ targets: [target] }] }] } = decode(
      Prometheus,
      Yaml.parse(read("prometheus.yaml"))
    )
    assert.deepStrictEqual(rule_files.map((name) => existsSync(new URL(name, directory))), [true])
    assert.strictEqual(target, `127.0.0.1:${defaults.port}`)
    const headers = { Host: target, Authorization: "Bearer the operator's" }
    assert.strictEqual(await status("/metrics", headers), 200)
    assert.strictEqual(await status("/metrics", { Host: target, Authorization: `Bearer ${secret}` }), 401)
  })
})

describe("the nginx configuration", () => {
  const location = read("nginx.conf")
  /** Each line without its comment: a directive, the head of the block, or its end. */
  const lines = location.split("\n").map((line) => line.split("#")[0]?.trim() ?? "").filter((line) => line !== "")
  const directives = new Map(
    lines.slice(1, -1).map((line): [string, string] => {
      const blank = line.indexOf(" ")
      return [line.slice(0, blank), line.slice(blank + 1, -1)]
    })
  )
  const prefix = lines[0]?.split(" ")[1] ?? ""
  let gateway: Kit.Running
  beforeAll(async () => {
    gateway = await Kit.start({ backends: { counter: Kit.counter() }, allowedHosts: ["example.com"] })
  })
  afterAll(() => gateway.stop())

  it("is one location, with directives that end in semicolons", () => {
    assert.deepStrictEqual([lines[0], lines.at(-1)], ["location /tools/ {", "}"])
    for (const line of lines.slice(1, -1)) assert.match(line, /^[a-z_]+ [^;]+;$/)
  })

  it("strips the prefix, does not buffer, and is as patient and as generous as the gateway", () => {
    assert.strictEqual(directives.get("proxy_pass"), `http://127.0.0.1:${defaults.port}/`)
    assert.strictEqual(directives.get("proxy_buffering"), "off")
    const { heartbeat, maxBodyBytes } = Settings.gatewaySettings
    const longest = Duration.max(heartbeat.default, Settings.backendSettings.startTimeout.default)
    assert.strictEqual(directives.get("proxy_read_timeout"), "1h")
    assert.isBelow(Duration.toHours(longest), 1)
    assert.strictEqual(directives.get("client_max_body_size"), maxBodyBytes.shown.replace(" MiB", "m"))
  })

  /** A server with this location: nginx, or a proxy that does what its directives say. */
  const proxied = async (): Promise<{ readonly port: number; readonly stop: () => Promise<void> }> => {
    const target = `${gateway.origin}/`
    if (areInstalled("nginx")) {
      const port = await Kit.freePort()
      writeFileSync(join(folder, "mcp-gateway.conf"), location.replace(`http://127.0.0.1:${defaults.port}/`, target))
      const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map((name) => `${name}_temp_path ${join(folder, name)};`)
      writeFileSync(
        join(folder, "nginx.conf"),
        `daemon off; master_process off; pid ${join(folder, "nginx.pid")}; error_log stderr; events {}
http { access_log off; ${temporary.join(" ")}
  server { listen 127.0.0.1:${port}; server_name example.com; include ${join(folder, "mcp-gateway.conf")}; } }\n`
      )
      const nginx = spawn("nginx", ["-c", join(folder, "nginx.conf")], { stdio: ["ignore", "ignore", "pipe"] })
      let said = ""
      nginx.stderr.on("data", (chunk) => {
        said += chunk
      })
      const exit = new Promise((resolve) => nginx.once("exit", resolve))
      await Kit.eventually("nginx listens", async () => {
        if (nginx.exitCode !== null) throw new Error(said)
        return fetch(`http://127.0.0.1:${port}/`).then(() => true, () => false)
      })
      return {
        port,
        stop: async () => {
          nginx.kill("SIGTERM")
          await exit
        }
      }
    }
    const proxy = createServer((incoming, response) => {
      const { headers, method = "GET", socket: { remoteAddress = "" }, url = "" } = incoming
      if (!url.startsWith(prefix)) return response.writeHead(404).end()
      const names: Record<string, string> = {
        "$host": String(headers.host).replace(/:\d+$/, ""),
        "$remote_addr": remoteAddress
      }
      const set = location.match(/(?<=proxy_set_header ).*(?=;)/g)?.map((line) => {
        const [name = "", variable = ""] = line.split(" ")
        return [name.toLowerCase(), names[variable]]
      }) ?? []
      const outgoing = request(
        `${target}${url.slice(prefix.length)}`,
        { method, headers: { ...headers, ...Object.fromEntries(set) } },
        (answer) => answer.pipe(response.writeHead(answer.statusCode ?? 0, answer.headers))
      )
      response.on("close", () => outgoing.destroy())
      incoming.pipe(outgoing.on("error", () => response.destroy()))
    }).listen(0, "127.0.0.1")
    await new Promise((resolve) => proxy.once("listening", resolve))
    return {
      port: Kit.portOf(proxy),
      stop: async () => {
        proxy.closeAllConnections()
        await new Promise((resolve) => proxy.close(resolve))
      }
    }
  }

  it("serves the gateway under the prefix: the page, its live events, and MCP with a body of 2 MB", async () => {
    const { port, stop } = await proxied()
    /** Asks for a path; the answer is resolved at its end, or when it has these words. */
    const ask = (path: string, body?: string, words?: string, headers: Record<string, string> = {}) =>
      new Promise<{ readonly status: number | undefined; readonly session: string; readonly text: string }>(
        (resolve, reject) => {
          const asked = request({
            host: "127.0.0.1",
            port,
            path,
            method: body === undefined ? "GET" : "POST",
            headers: { ...Kit.headers, Host: `example.com:${port}`, ...headers }
          }, (response) => {
            let text = ""
            const answer = () => ({
              status: response.statusCode,
              session: String(response.headers["mcp-session-id"]),
              text
            })
            response.on("data", (chunk) => {
              text += chunk
              if (words === undefined || !text.includes(words)) return
              resolve(answer())
              response.destroy()
            })
            response.on("end", () => resolve(answer()))
          }).on("error", reject)
          asked.end(body)
        }
      )
    assert.strictEqual((await ask("/elsewhere")).status, 404)
    const page = await ask(prefix)
    assert.strictEqual(page.status, 200)
    assert.include(page.text, "<title>")
    // This response never ends.
    assert.strictEqual((await ask(`${prefix}sessions/events`, undefined, "event: snapshot")).status, 200)
    const opened = await ask(`${prefix}mcp/counter`, Kit.initializeBody)
    assert.strictEqual(opened.status, 200)
    const large = Kit.toolCall(1, "count", { filler: "x".repeat(2_000_000) })
    const called = await ask(`${prefix}mcp/counter`, large, undefined, { "mcp-session-id": opened.session })
    assert.strictEqual(called.status, 200)
    assert.include(called.text, "\"text\":\"1\"")
    await stop()
  })
})

describe("the files to deploy with", () => {
  it("are listed in the manual, and begin with a comment on how to use them", () => {
    const manual = Documents.read("src/gateway/README.md")
    for (const name of readdirSync(directory)) {
      assert.include(manual, `[${name}](deploy/${name})`)
      assert.isTrue(name.endsWith(".json") || read(name).startsWith("# "), name)
    }
  })

  it("give a stopping replica the same time, which is no less than it may take", () => {
    const { drainTimeout, leaveDelay } = Settings.gatewaySettings
    const { closeGrace } = Settings.backendSettings
    const processes = Duration.times(closeGrace.default, 2)
    const parts = [leaveDelay.default, drainTimeout.default, processes, Cluster.longestLeave, Duration.seconds(1)]
    const longest = Duration.toSeconds(parts.reduce(Duration.sum))
    const given = [
      Number(inUnit("TimeoutStopSec")),
      Number(/docker run .*--stop-timeout (\d+) /.exec(dockerfile)?.[1]),
      ...[compose.services.one, compose.services.two].map(({ stop_grace_period }) =>
        Duration.toSeconds(Duration.fromInputUnsafe(`${Number(stop_grace_period.replace(/s$/, ""))} seconds`))
      ),
      terminationGracePeriodSeconds
    ]
    assert.deepStrictEqual(given, [45, 45, 45, 45, 45])
    assert.isAtMost(longest, 45)
  })
})
