/**
 * The files that the README shows for systemd, Docker, Kubernetes and Prometheus, as far as this machine can tell: each is
 * read, and the gateway's own command is started with the flags and variables that it gives, to check them.
 */
import { Duration, Schema } from "effect"
import { Yaml } from "effect/encoding"
import { execFileSync, spawnSync } from "node:child_process"
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { request } from "node:http"
import { tmpdir } from "node:os"
import { basename, join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import manifest from "../../package.json" with { type: "json" }
import * as Programs from "../../src/gateway/backends/Programs.ts"
import * as Settings from "../../src/gateway/settings/Settings.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { block, blocks } from "../kit/readme.ts"

const folder = mkdtempSync(join(tmpdir(), "deployment-"))
const { args, command } = Kit.counter()
const servers = join(folder, "servers.json")
const keys = join(folder, "keys")
/** For what a snippet takes from elsewhere. */
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

/** What the command says of its arguments and variables: that they are valid, or every fault. */
const checked = async (args: ReadonlyArray<string>, env: Record<string, string>): Promise<string> =>
  (await runInProcess(["--check", ...args], env)).output.trim()
const valid = "The configuration is valid. Back ends: counter"

/** The lines `Name=value` of a unit, `[Section]` and comments. */
const unit = block("ini", "[Service]")
const inUnit = (name: string): string => new RegExp(`^${name}=(.*)$`, "m").exec(unit)?.[1] ?? ""

const dockerfile = block("dockerfile", "FROM")
const instruction = (name: string): ReadonlyArray<string> =>
  [...dockerfile.matchAll(new RegExp(`^${name} (.*)$`, "gm"))].map(([, rest = ""]) => rest)
const entrypoint = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Array(Schema.String)))(
  instruction("ENTRYPOINT")[0]
)
/** The arguments of the image's gateway, with the file that is there on this machine. */
const inImage = (more: ReadonlyArray<string>): ReadonlyArray<string> =>
  [...entrypoint.slice(1), ...more].map((arg) => arg === "servers.json" ? servers : arg)

const Texts = Schema.Record(Schema.String, Schema.String)
const Replica = Schema.Struct({
  image: Schema.Literal("IMAGE"),
  init: Schema.Literal(true),
  restart: Schema.Literal("on-failure"),
  hostname: Schema.String,
  command: Schema.Array(Schema.String),
  environment: Texts,
  stop_grace_period: Schema.String
})
const Compose = Schema.Struct({
  services: Schema.Struct({
    database: Schema.Struct({ image: Schema.String, environment: Texts, volumes: Schema.Array(Schema.String) }),
    one: Replica,
    two: Replica,
    balancer: Schema.Struct({
      image: Schema.Literal("caddy:2"),
      ports: Schema.Tuple([Schema.String]),
      configs: Schema.Tuple([
        Schema.Struct({ source: Schema.Literal("balancer"), target: Schema.Literal("/etc/caddy/Caddyfile") })
      ])
    })
  }),
  volumes: Schema.Record(Schema.String, Schema.Unknown),
  configs: Schema.Struct({ balancer: Schema.Struct({ content: Schema.String }) })
})
const Pod = Schema.Struct({
  terminationGracePeriodSeconds: Schema.Number,
  shareProcessNamespace: Schema.Literal(true),
  containers: Schema.Tuple([Schema.Struct({
    name: Schema.String,
    image: Schema.Literal("IMAGE"),
    args: Schema.Array(Schema.String),
    env: Schema.Array(Schema.Union([
      Schema.Struct({ name: Schema.String, value: Schema.String }),
      Schema.Struct({
        name: Schema.String,
        valueFrom: Schema.Union([
          Schema.Struct({ fieldRef: Schema.Struct({ fieldPath: Schema.Literal("status.podIP") }) }),
          Schema.Struct({ secretKeyRef: Schema.Struct({ name: Schema.String, key: Schema.String }) })
        ])
      })
    ])),
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
const Prometheus = Schema.Struct({
  rule_files: Schema.Array(Schema.String),
  scrape_configs: Schema.Tuple([Schema.Struct({
    job_name: Schema.String,
    authorization: Schema.Struct({ credentials_file: Schema.String }),
    static_configs: Schema.Tuple([Schema.Struct({ targets: Schema.Tuple([Schema.String]) })])
  })])
})

/** What a snippet of YAML holds; what it has besides is a fault. */
const read = <A>(schema: Schema.Codec<A, unknown>, words: string): A =>
  Schema.decodeUnknownSync(schema, { onExcessProperty: "error" })(Yaml.parse(block("yaml", words)))
const compose = read(Compose, "# compose.yaml")
const { containers: [container], terminationGracePeriodSeconds } = read(Pod, "# Kubernetes")

const podIp = "10.0.0.7"
const inPod: Record<string, string> = Object.fromEntries(container.env.map((variable) => [
  variable.name,
  "value" in variable ? variable.value : "fieldRef" in variable.valueFrom ? podIp : secret
]))

describe("the systemd unit", () => {
  it("is one that systemd takes without a word", () => {
    assert.match(unit, /^(# .*\n)?(\[(Service|Install)\]\n((# .*|[A-Z]\w+=\S.*)\n)+\n?)+$/)
    // Only where it is installed can it be asked.
    if (Programs.find("systemd-analyze", undefined, Programs.here(process.env)) === undefined) return
    const file = join(folder, "mcp-gateway.service")
    writeFileSync(file, unit.replaceAll("/usr/bin/node", process.execPath))
    const { status, stderr, stdout } = spawnSync("systemd-analyze", ["verify", "--man=no", file], { encoding: "utf8" })
    assert.deepStrictEqual([stdout, stderr, status], ["", "", 0])
  })

  it("starts the package's command with flags and variables that there are", async () => {
    const [node, ...words] = inUnit("ExecStart").split(" ")
    assert.strictEqual(basename(node ?? ""), "node")
    const at = words.findIndex((word) => !word.startsWith("-"))
    assert.strictEqual(
      words[at],
      join("/opt/mcp/node_modules", manifest.name, manifest.bin["effect-session-pool"])
    )
    const args = words.slice(at + 1)
    assert.deepStrictEqual(args, ["--config", "/etc/mcp/servers.json"])
    // The file of keys is one that systemd hands over, because the gateway's user may not read it where it is.
    const [credential = "", file] = inUnit("LoadCredential").split(":")
    const { HOME: kept, ...env } = Object.fromEntries(
      [...unit.matchAll(/^Environment=(\w+)=(.*)$/gm)].map(([, name = "", value = ""]) => [name, value])
    )
    assert.deepStrictEqual(env, { GATEWAY_KEYS_FILE: `%d/${credential}` })
    assert.strictEqual(file, "/etc/mcp/keys")
    assert.strictEqual(kept, `%S/${inUnit("StateDirectory")}`)
    // What the comment says to write into the file of variables.
    assert.deepStrictEqual(unknown(args, { ...env, GATEWAY_ADMIN_KEYS: "" }), [])
    assert.include(unit, " GATEWAY_ADMIN_KEYS=")
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

  it("installs what the README says to install, on a Node that the package takes", () => {
    const [install = ""] = instruction("RUN")
    assert.include(blocks("sh").flatMap((text) => text.split("\n")), install)
    const [, major = ""] = /^node:(\d+)-slim$/.exec(instruction("FROM")[0] ?? "") ?? []
    const [, least = ""] = /^>=(\d+)\./.exec(manifest.engines.node) ?? []
    assert.isAtLeast(Number(major), Number(least))
  })

  it("starts the package's command with flags and variables that there are, on the port that it shows", async () => {
    assert.deepStrictEqual(Object.keys(manifest.bin).map((name) => `node_modules/.bin/${name}`), [entrypoint[0]])
    assert.deepStrictEqual(instruction("EXPOSE"), [defaults.port])
    assert.include(dockerfile, ` -p ${defaults.port}:${defaults.port} `)
    assert.include(instruction("COPY"), "servers.json .")
    assert.lengthOf(variables, 3)
    const env = Object.fromEntries(variables)
    assert.deepStrictEqual(unknown(entrypoint.slice(1), env), [])
    assert.strictEqual(await checked(inImage([]), env), valid)
    const [options = ""] = instruction("ENV")
    execFileSync(process.execPath, ["--eval", "0"], { env: { NODE_OPTIONS: options.replace("NODE_OPTIONS=", "") } })
  })
})

describe("compose.yaml", () => {
  const { balancer, database, one, two } = compose.services

  it("starts two replicas that may be, each of which the other reaches by its own name", async () => {
    for (const [name, { command, environment, hostname }] of Object.entries({ one, two })) {
      assert.strictEqual(hostname, name)
      assert.strictEqual(command[command.indexOf("--replica-address") + 1], `${name}:${defaults.replica}`)
      assert.strictEqual(command[command.indexOf("--replica-listen") + 1], `0.0.0.0:${defaults.replica}`)
      assert.deepStrictEqual(unknown(command, environment), [])
      const env = Object.fromEntries(
        Object.entries(environment).map(([name, value]) => [name, value.replace(/^\$\{\w+\}$/, secret)])
      )
      assert.strictEqual(new URL(env["DATABASE_URL"] ?? "").hostname, "database")
      // What a lone gateway needs would do without a database.
      assert.strictEqual(await checked(inImage(command), env), valid)
      const lacking = await checked(inImage(command), { ...env, DATABASE_URL: "" })
      assert.include(lacking, "--cluster needs more:\n  DATABASE_URL")
    }
  })

  it("keeps what the database holds in a volume that there is, where PostgreSQL 17 puts it", () => {
    assert.strictEqual(database.image, "postgres:17")
    const mounts = database.volumes.map((volume) => volume.split(":"))
    assert.deepStrictEqual(mounts.map(([, path]) => path), ["/var/lib/postgresql/data"])
    assert.deepStrictEqual(mounts.map(([name]) => name), Object.keys(compose.volumes))
  })

  it("has the database that two replicas on one machine are told to start with Docker, where they look for it", () => {
    const docker = block("sh", "docker run").trim()
    const { host, password, username } = new URL(
      /^export DATABASE_URL=(.*)$/m.exec(block("sh", "--cluster"))?.[1] ?? ""
    )
    assert.strictEqual(docker.split(" ").at(-1), database.image)
    assert.include(docker, ` -p ${host}:5432 `)
    const [[name, value] = []] = Object.entries(database.environment)
    assert.include(docker, ` -e ${name}=${value} `)
    assert.deepStrictEqual([username, password], ["postgres", ""])
  })

  it("publishes a balancer that sends to both, if they are ready, and gives idle connections up before they do", () => {
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

describe("the Kubernetes pod", () => {
  it("starts a replica that may be, with variables that there are", async () => {
    const own = Object.keys(inPod).filter((name) => container.args.some((arg) => arg.includes(`$(${name})`)))
    assert.deepStrictEqual(own, ["POD_IP"])
    const env = Object.fromEntries(Object.entries(inPod).filter(([name]) => !own.includes(name)))
    assert.deepStrictEqual(unknown(container.args, env), [])
    const args = container.args.map((arg) => arg.replace("$(POD_IP)", podIp))
    assert.include(args, `${podIp}:${defaults.replica}`)
    const url = { DATABASE_URL: "postgresql://postgres@database/postgres" }
    assert.strictEqual(await checked(inImage(args), { ...env, ...url }), valid)
  })
})

describe("what asks a gateway that runs as these tell it to", () => {
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

  it("is the readiness probe: the path is a route, and only under the name that it gives", async () => {
    const { httpHeaders: [host], path, port } = container.readinessProbe.httpGet
    assert.strictEqual(String(port), defaults.port)
    assert.strictEqual(await status(path, { [host.name]: host.value }), 200)
    assert.strictEqual(await status(path, { Host: `${podIp}:${port}` }), 403)
    assert.strictEqual(await status(`${path}-not`, { [host.name]: host.value }), 404)
  })

  it("is Prometheus: the rules are shipped, and the metrics are there for an operator's key alone", async () => {
    const { rule_files, scrape_configs: [{ static_configs: [{ targets: [target] }] }] } = read(
      Prometheus,
      "prometheus.yml"
    )
    const shipped = rule_files.map((name) => existsSync(new URL(`../../src/gateway/assets/${name}`, import.meta.url)))
    assert.deepStrictEqual(shipped, [true])
    assert.strictEqual(target, `127.0.0.1:${defaults.port}`)
    const headers = { Host: target, Authorization: "Bearer the operator's" }
    assert.strictEqual(await status("/metrics", headers), 200)
    assert.strictEqual(await status("/metrics", { Host: target, Authorization: `Bearer ${secret}` }), 401)
  })
})

describe("each of them", () => {
  it("gives a replica that stops the same time, no less than it may take", () => {
    const { drainTimeout, leaveDelay } = Settings.gatewaySettings
    const longest = Duration.toSeconds(leaveDelay.default) + Duration.toSeconds(drainTimeout.default) + 25
    const given = [
      Number(inUnit("TimeoutStopSec")),
      ...[compose.services.one, compose.services.two].map(({ stop_grace_period }) =>
        Duration.toSeconds(Duration.fromInputUnsafe(`${Number(stop_grace_period.replace(/s$/, ""))} seconds`))
      ),
      terminationGracePeriodSeconds
    ]
    assert.deepStrictEqual(given, [40, 40, 40, 40])
    assert.isAtMost(longest, 40)
  })
})
