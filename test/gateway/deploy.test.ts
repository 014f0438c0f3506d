/**
 * The files of `src/gateway/deploy`. The gateway's command checks their flags and variables with `--check`. `metrics.test.ts` checks the
 * alerts and the dashboard.
 */
import { Duration } from "effect"
import { Yaml } from "effect/encoding"
import { execFileSync, spawn, spawnSync } from "node:child_process"
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, expect, it, onTestFinished } from "vitest"
import manifest from "../../package.json" with { type: "json" }
import * as Cluster from "../../src/gateway/cluster/Cluster.ts"
import * as Settings from "../../src/gateway/settings/Settings.ts"
import * as Documents from "../kit/documents.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as PrefixProxy from "../kit/gateway/prefixProxy.ts"
import * as Serving from "../kit/gateway/serving.ts"
import { areInstalled } from "../kit/programs.ts"

const directory = new URL("../../src/gateway/deploy/", import.meta.url)
const folder = Serving.directory()
const { args, command } = Kit.counter()
const servers = Serving.file("servers.json", { mcpServers: { counter: { command, args } } })
const keys = join(folder, "keys")
const read = (name: string): string => Documents.read(`src/gateway/deploy/${name}`)
/** Stands for each value that a file takes from elsewhere. */
const secret = "a secret of at least thirty-two characters"
const defaults = { port: String(Settings.gatewaySettings.port.default), replica: "8421" }

writeFileSync(keys, `${secret}\n`, { mode: 0o600 })

/** The command's verdict on its arguments and variables: `valid`, or every fault and warning. */
const checked = async (args: ReadonlyArray<string>, env: Record<string, string>): Promise<string> =>
  (await runInProcess(["--check", ...args], env)).output.trim()
const valid = "The configuration is valid. Back ends: counter"

/** The rest of each line that begins with a prefix. */
const linesOf = (text: string, prefix: string): ReadonlyArray<string> =>
  [...text.matchAll(new RegExp(`^ *${prefix}(.*)$`, "gm"))].map(([, rest = ""]) => rest)

const unit = read("mcp-gateway.service")
const inUnit = (name: string): string => linesOf(unit, `${name}=`)[0] ?? ""
const dockerfile = read("Dockerfile")
const instruction = (name: string) => linesOf(dockerfile, `${name} `)
const entrypoint: ReadonlyArray<string> = JSON.parse(instruction("ENTRYPOINT")[0] ?? "")
/** The arguments of the image's gateway, with the file that is there on this machine. */
const inImage = (more: ReadonlyArray<string>): ReadonlyArray<string> =>
  [...entrypoint.slice(1), ...more].map((arg) => arg === "servers.json" ? servers : arg)

// A parsed document.
// oxlint-disable-next-line typescript/no-explicit-any
type Document = any
const parse = (text: string): Document => Yaml.parse(text)
const compose = parse(read("compose.yaml"))
const [deployment, service, policy] = read("kubernetes.yaml").split("\n---\n").map(parse)
const pod = deployment.spec.template.spec
const [container] = pod.containers
const probe = container.readinessProbe.httpGet

const podIp = "10.0.0.7"
const inPod: Record<string, string> = Object.fromEntries(
  container.env.map(({ name, value, valueFrom }: Document) => [name, value ?? (valueFrom.fieldRef ? podIp : secret)])
)

describe("the systemd unit", () => {
  it("systemd verifies the unit without a warning", () => {
    assert.match(unit, /^(# .*\n)*(\[(Unit|Service|Install)\]\n((# .*|[A-Z]\w+=\S.*)\n)+\n?)+$/)
    if (!areInstalled("systemd-analyze")) return
    const file = join(folder, "mcp-gateway.service")
    writeFileSync(file, unit.replaceAll("/usr/bin/node", process.execPath))
    const { status, stderr, stdout } = spawnSync("systemd-analyze", ["verify", "--man=no", file], { encoding: "utf8" })
    assert.deepStrictEqual([stdout, stderr, status], ["", "", 0])
  })

  it("the unit starts the package's command with flags and variables that it knows", async () => {
    const [node, ...words] = inUnit("ExecStart").split(" ")
    assert.match(node ?? "", /\/node$/)
    const at = words.findIndex((word) => !word.startsWith("-"))
    const program = join("/opt/mcp/node_modules", manifest.name, manifest.bin["effect-session-pool"])
    assert.deepStrictEqual(words.slice(at), [program, "--config", "/etc/mcp/servers.json"])
    // systemd hands the file of keys over, because the gateway's user may not read it in `/etc`.
    const [credential = "", file] = inUnit("LoadCredential").split(":")
    const { HOME: kept, ...env } = Object.fromEntries(linesOf(unit, "Environment=").map((line) => line.split("=")))
    assert.deepStrictEqual([env, file], [{ GATEWAY_KEYS_FILE: `%d/${credential}` }, "/etc/mcp/keys"])
    assert.strictEqual(kept, `%S/${inUnit("StateDirectory")}`)
    assert.include(unit, " GATEWAY_ADMIN_KEYS=")
    assert.strictEqual(inUnit("EnvironmentFile"), "/etc/mcp/environment")
    const verdict = await checked(["--config", servers], { GATEWAY_KEYS_FILE: keys, GATEWAY_ADMIN_KEYS: secret })
    assert.strictEqual(verdict, valid)
    // Node refuses an option that it does not know.
    execFileSync(process.execPath, [...words.slice(0, at), "--eval", "0"])
  })
})

describe("the Dockerfile", () => {
  const variables = [...(/docker run .*/.exec(dockerfile)?.[0] ?? "").matchAll(/-e (\w+)=(\S+)/g)]
    .map(([, name = "", value = ""]) => [name, value.replace("…", secret)] as const)

  it("the image has the package and its peers, on a Node that the package supports", () => {
    const packages = (instruction("RUN")[0] ?? "").replace("npm install ", "").split(" ")
    assert.sameMembers(packages, [manifest.name, ...Object.keys(manifest.peerDependencies)])
    const [, major = ""] = /^node:(\d+)-slim$/.exec(instruction("FROM")[0] ?? "") ?? []
    const [, least = ""] = /^>=(\d+)\./.exec(manifest.engines.node) ?? []
    assert.isAtLeast(Number(major), Number(least))
  })

  it("the image starts the package's command with flags and variables that it knows, on the exposed port", async () => {
    assert.deepStrictEqual(Object.keys(manifest.bin).map((name) => `node_modules/.bin/${name}`), [entrypoint[0]])
    assert.deepStrictEqual(instruction("EXPOSE"), [defaults.port])
    assert.include(dockerfile, ` -p ${defaults.port}:${defaults.port} `)
    assert.include(instruction("COPY"), "--chown=node servers.json .")
    assert.lengthOf(variables, 3)
    const env = Object.fromEntries(variables)
    assert.strictEqual(await checked(inImage([]), env), valid)
    const [options = ""] = instruction("ENV")
    execFileSync(process.execPath, ["--eval", "0"], { env: { NODE_OPTIONS: options.replace("NODE_OPTIONS=", "") } })
  })
})

describe("the Compose file", () => {
  const { balancer, database, one, two } = compose.services

  it("starts two replicas of the image, which reach each other by name", async () => {
    for (const [name, replica] of Object.entries({ one, two })) {
      const { command, environment, image } = replica
      expect(replica).toMatchObject({ build: ".", init: true, hostname: name, restart: "unless-stopped" })
      assert.include(dockerfile, `docker build -t ${image} .`)
      assert.strictEqual(command[command.indexOf("--replica-address") + 1], `${name}:${defaults.replica}`)
      assert.strictEqual(command[command.indexOf("--replica-listen") + 1], `0.0.0.0:${defaults.replica}`)
      const filled = Object.entries<string>(environment).map((
        [name, value]
      ) => [name, value.replace(/^\$\{\w+\}$/, secret)])
      const env = Object.fromEntries(filled)
      assert.strictEqual(new URL(env["DATABASE_URL"] ?? "").hostname, "database")
      // Without the flag `--cluster` the command would need no database.
      assert.strictEqual(await checked(inImage(command), env), valid)
      const lacking = await checked(inImage(command), { ...env, DATABASE_URL: "" })
      assert.include(lacking, "--cluster needs more:\n  DATABASE_URL")
    }
  })

  it("keeps the database in a volume at the path of PostgreSQL 17", () => {
    const [volume] = Object.keys(compose.volumes)
    expect(database).toMatchObject({ image: "postgres:17", restart: "unless-stopped" })
    assert.deepStrictEqual(database.volumes, [`${volume}:/var/lib/postgresql/data`])
  })

  it.skipIf(!areInstalled("openssl"))("says how to make the file .env with each value that it reads", () => {
    const make = read("compose.yaml").split("\n").find((line) => line.endsWith(" > .env"))?.slice(1) ?? ""
    execFileSync("bash", ["-c", make], { cwd: folder })
    const made = readFileSync(join(folder, ".env"), "utf8").trimEnd().split("\n").map((line) => line.split("="))
    const taken = Object.values<string>(one.environment).filter((value) => value.startsWith("${"))
    assert.deepStrictEqual(made.map(([name]) => `\${${name}}`), taken)
    for (const [, value = ""] of made) assert.lengthOf(value, 64)
  })

  it("the balancer sends requests to both replicas if they are ready, and closes idle connections before they do", () => {
    expect(balancer).toMatchObject({
      image: "caddy:2",
      restart: "unless-stopped",
      ports: [`${defaults.port}:${defaults.port}`],
      configs: [{ source: "balancer", target: "/etc/caddy/Caddyfile" }]
    })
    const [, targets = "", directives = ""] =
      /^:8420 \{\n {2}reverse_proxy ([^{]*) \{\n([\s\S]*)\n {2}\}\n\}\n$/.exec(compose.configs.balancer.content) ?? []
    assert.deepStrictEqual(targets.split(" "), [one, two].map(({ hostname }) => `${hostname}:${defaults.port}`))
    const directive = (name: string) => linesOf(directives, `${name} `)[0]
    const [host] = probe.httpHeaders
    assert.deepStrictEqual([directive("health_uri"), directive(host.name)], [probe.path, host.value])
    // Twice while a replica that stops still serves.
    assert.strictEqual(directive("health_interval"), "1s")
    assert.isAtLeast(Duration.toSeconds(Settings.gatewaySettings.leaveDelay.default), 2)
    assert.strictEqual(directive("keepalive"), "60s")
    assert.isAbove(Duration.toSeconds(Settings.gatewaySettings.keepAliveTimeout.default), 60)
  })
})

describe("the Kubernetes manifest", () => {
  it("the pods run the command with flags and variables that it knows", async () => {
    const own = Object.keys(inPod).filter((name) => container.args.some((arg: string) => arg.includes(`$(${name})`)))
    assert.deepStrictEqual(own, ["POD_IP"])
    const env = Object.fromEntries(Object.entries(inPod).filter(([name]) => !own.includes(name)))
    const args = container.args.map((arg: string) => arg.replace("$(POD_IP)", podIp))
    assert.include(args, `${podIp}:${defaults.replica}`)
    assert.property(env, "DATABASE_URL")
    const DATABASE_URL = "postgresql://postgres@database/postgres"
    assert.strictEqual(await checked(inImage(args), { ...env, DATABASE_URL }), valid)
    expect(deployment).toMatchObject({ apiVersion: "apps/v1", kind: "Deployment", spec: { replicas: 2 } })
    assert.isTrue(pod.shareProcessNamespace)
  })

  it("says how to make the secret that the pods read", () => {
    const refs = container.env.flatMap(({ valueFrom }: Document) => valueFrom?.secretKeyRef ?? [])
    const text = read("kubernetes.yaml")
    assert.lengthOf(refs, 4)
    for (const { key, name } of refs) {
      assert.include(text, `kubectl create secret generic ${name} `)
      assert.include(text, ` --from-literal=${key}=`)
    }
  })

  it("serves the pods' port, and lets only replicas reach the port between replicas", () => {
    const { labels } = deployment.spec.template.metadata
    const [port, replicaPort] = [Number(defaults.port), Number(defaults.replica)]
    assert.deepStrictEqual(deployment.spec.selector.matchLabels, labels)
    expect(service).toMatchObject({ apiVersion: "v1", kind: "Service" })
    assert.deepStrictEqual(service.spec, { selector: labels, ports: [{ port, targetPort: port }] })
    expect(policy).toMatchObject({ apiVersion: "networking.k8s.io/v1", kind: "NetworkPolicy" })
    assert.deepStrictEqual(policy.spec, {
      podSelector: { matchLabels: labels },
      policyTypes: ["Ingress"],
      ingress: [
        { ports: [{ port }] },
        { from: [{ podSelector: { matchLabels: labels } }], ports: [{ port: replicaPort }] }
      ]
    })
    assert.deepStrictEqual(container.ports, [{ containerPort: port }, { containerPort: replicaPort }])
  })
})

describe("a gateway with the image's flags", () => {
  const starting = Serving.command(inImage([]), {
    GATEWAY_KEYS: secret,
    GATEWAY_ADMIN_KEYS: "the operator's",
    GATEWAY_ALLOWED_HOSTS: inPod["GATEWAY_ALLOWED_HOSTS"] ?? ""
  })
  const status = async (path: string, headers: Record<string, string>) =>
    (await Serving.ask(`http://127.0.0.1:${(await starting).port}`, path, headers, "GET")).status

  it("answers the readiness probe, whose Host header names an allowed host", async () => {
    const { httpHeaders: [host], path, port } = probe
    assert.strictEqual(String(port), defaults.port)
    assert.strictEqual(await status(path, { [host.name]: host.value }), 200)
    assert.strictEqual(await status(path, { Host: `other.example.com:${port}` }), 403)
    assert.strictEqual(await status(`${path}-not`, { [host.name]: host.value }), 404)
  })

  it("answers Prometheus with an operator's key only, and the rules lie beside the configuration of Prometheus", async () => {
    const { rule_files, scrape_configs: [{ static_configs: [{ targets: [target] }] }] } = parse(read("prometheus.yaml"))
    assert.deepStrictEqual(rule_files.map((name: string) => existsSync(new URL(name, directory))), [true])
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
  const directive = (name: string) => new RegExp(`^ *${name} ([^;]+);`, "m").exec(location)?.[1]
  const prefix = "/tools/"

  it("the nginx configuration is one location whose directives end in semicolons", () => {
    assert.deepStrictEqual([lines[0], lines.at(-1)], ["location /tools/ {", "}"])
    for (const line of lines.slice(1, -1)) assert.match(line, /^[a-z_]+ [^;]+;$/)
  })

  it("nginx strips the prefix, does not buffer, and allows the time and the body size that the gateway allows", () => {
    assert.strictEqual(directive("proxy_pass"), `http://127.0.0.1:${defaults.port}/`)
    assert.strictEqual(directive("proxy_buffering"), "off")
    const { heartbeat, maxBodyBytes } = Settings.gatewaySettings
    const longest = Duration.max(heartbeat.default, Settings.backendSettings.startTimeout.default)
    assert.strictEqual(directive("proxy_read_timeout"), "1h")
    assert.isBelow(Duration.toHours(longest), 1)
    assert.strictEqual(directive("client_max_body_size"), maxBodyBytes.shown.replace(" MiB", "m"))
  })

  /** Starts nginx with this location; its port. */
  const nginx = async (target: string): Promise<number> => {
    const port = await Kit.freePort()
    const [own, included] = [join(folder, "nginx.conf"), join(folder, "mcp-gateway.conf")]
    writeFileSync(included, location.replace(`http://127.0.0.1:${defaults.port}`, target))
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
      .map((name) => `${name}_temp_path ${join(folder, name)};`)
    const main = `daemon off; master_process off; pid ${join(folder, "nginx.pid")}; error_log stderr emerg; events {}`
    const server = `server { listen 127.0.0.1:${port}; server_name example.com; include ${included}; }`
    writeFileSync(own, `${main}\nhttp { access_log off; ${temporary.join(" ")} ${server} }\n`)
    const child = spawn("nginx", ["-c", own], { stdio: "inherit" })
    onTestFinished(() => void child.kill("SIGTERM"))
    await Kit.eventually("nginx listens", () => fetch(`http://127.0.0.1:${port}/`).then(() => true, () => false))
    return port
  }

  it("nginx serves the page, its live events, and MCP with a body of 2 MB under the prefix", async () => {
    const gateway = await Serving.gateway({ backends: { counter: Kit.counter() }, allowedHosts: ["example.com"] })
    assert.includeMembers(lines, ["proxy_set_header Host $host;", "proxy_set_header X-Forwarded-For $remote_addr;"])
    const set = { host: "example.com", "x-forwarded-for": "127.0.0.1" }
    const origin = areInstalled("nginx")
      ? `http://127.0.0.1:${await nginx(gateway.origin)}`
      : await PrefixProxy.start(gateway.origin, prefix, () => set)
    const host = { host: "example.com" }
    const get = (path: string, more = {}) => Serving.ask(origin, path, host, "GET", more)
    assert.strictEqual((await get("/elsewhere")).status, 404)
    const page = await get(prefix)
    assert.strictEqual(page.status, 200)
    assert.include(page.text, "<title>")
    // This response never ends.
    assert.strictEqual((await get(`${prefix}sessions/events`, { words: "event: snapshot" })).status, 200)
    const opened = await Serving.ask(origin, `${prefix}mcp/counter`, host)
    assert.strictEqual(opened.status, 200)
    const body = Kit.toolCall(1, "count", { filler: "x".repeat(2_000_000) })
    const headers = { ...host, "mcp-session-id": opened.session }
    const called = await Serving.ask(origin, `${prefix}mcp/counter`, headers, "POST", { body })
    assert.strictEqual(called.status, 200)
    assert.include(called.text, "\"text\":\"1\"")
  })
})

describe("all files for deployment", () => {
  it("the manual lists every file, and each file begins with a comment on its use", () => {
    const manual = Documents.read("src/gateway/README.md")
    for (const name of readdirSync(directory)) {
      assert.include(manual, `[${name}](deploy/${name})`)
      assert.isTrue(name.endsWith(".json") || read(name).startsWith("# "), name)
    }
  })

  it("every file gives a stopping replica the same time, which is no less than it may take", () => {
    const { drainTimeout, leaveDelay } = Settings.gatewaySettings
    const { closeGrace } = Settings.backendSettings
    const processes = Duration.times(closeGrace.default, 2)
    const parts = [leaveDelay.default, drainTimeout.default, processes, Cluster.longestLeave, Duration.seconds(1)]
    const longest = Duration.toSeconds(parts.reduce(Duration.sum))
    const given = [
      Number(inUnit("TimeoutStopSec")),
      Number(/docker run .*--stop-timeout (\d+) /.exec(dockerfile)?.[1]),
      ...["one", "two"].map((name) => Number.parseInt(compose.services[name].stop_grace_period)),
      pod.terminationGracePeriodSeconds
    ]
    assert.deepStrictEqual(given, [45, 45, 45, 45, 45])
    assert.isAtMost(longest, 45)
  })
})
