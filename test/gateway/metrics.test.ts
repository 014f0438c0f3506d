/** The metrics of a gateway: the exported ones, the table in the reference, and the queries of the dashboard and the alerts. */
import { Yaml } from "effect/encoding"
import { assert, describe, it } from "vitest"
import * as Documents from "../kit/documents.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { callTool, everything, light } from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as Metrics from "../kit/metrics.ts"

const read = (name: string) => Documents.read(`src/gateway/${name}`)
// Parsed JSON or YAML.
// oxlint-disable-next-line typescript/no-explicit-any
type Document = any
/** The pool's metrics. A gateway exports some of them only after something goes wrong, so these are the documented ones. */
const ofPool = Metrics.documented()
/** The value of a sample in a text of `/metrics`. */
const value = (text: string, sample: string): number =>
  Number(text.split("\n").find((line) => line.startsWith(`${sample} `))?.slice(sample.length + 1))

const { origin } = await Serving.gateway({
  backends: {
    asking: { ...light, maxLanes: 2 },
    broken: Kit.counter("--fail-start"),
    dozy: { ...Kit.counter(), stateless: true, idleTimeToLive: "50 millis" },
    ready: { ...Kit.counter(), spares: 1 }
  },
  cleanupInterval: "20 millis",
  acquireTimeout: "1 hour",
  shareWithoutKeys: true,
  maxSessions: 50
})
const urlOf = (backend: string) => `${origin}/mcp/${backend}`
const scrape = () => Serving.scrape(origin)

// Each metric is exported after its first use.
const session = await Kit.open(urlOf("ready"))
await Kit.toolText(urlOf("ready"), session, "count")
assert.strictEqual(await Kit.toolText(urlOf("ready"), session, "garbage"), "after garbage")
await (await Kit.post(urlOf("ready"), session, JSON.stringify({ jsonrpc: "2.0", id: 1, method: "made/up" }))).text()
await Serving.remove(urlOf("ready"), session)
await Kit.initialize(urlOf("broken"))
await Kit.eventually("the close is counted", async () => (await scrape()).includes("mcp_gateway_closed_sessions"))
/** The gateway's metrics, after each has been used. */
const ofGateway = Metrics.exported(await scrape(), "mcp_gateway_")

describe("the metrics of a gateway", () => {
  it("match the table of the reference exactly, with types and labels", async () => {
    const reference = read("REFERENCE.md")
    for (const [name, { labels, type }] of Object.entries(ofGateway)) {
      const shown = labels.length === 0 ? "none" : labels.map((label) => `\`${label}\``).join(", ")
      assert.include(reference, `| \`${name}\` | ${type} | ${shown} | `)
    }
    const rows = reference.split("\n").filter((line) => line.startsWith("| `mcp_gateway_"))
    assert.lengthOf(rows, Object.keys(ofGateway).length)
    for (const [name, metric] of Object.entries(Metrics.exported(await scrape(), "session_pool_"))) {
      assert.deepStrictEqual(metric, ofPool[name], name)
    }
  })

  it("show the live and sleeping sessions, spares, parked calls and cool-downs at the time of the scrape", async () => {
    await Kit.open(urlOf("dozy"))
    assert.strictEqual((await callTool(urlOf("asking"), "ask", {}, { capabilities: everything })).status, 200)
    await Kit.eventually("all is as it should be", async () => {
      // The cool-down of the back end may have ended, so one more start fails.
      await Kit.initialize(urlOf("broken"))
      const text = await scrape()
      const of = (name: string, backend: string) => value(text, `mcp_gateway_${name}{backend="${backend}"}`)
      const state = (backend: string, state: string) =>
        value(text, `mcp_gateway_backend_state{backend="${backend}",state="${state}"}`)
      const found = [
        ...["asleep_sessions", "live_sessions"].map((name) => of(name, "dozy")),
        of("spare_processes", "ready"),
        ...["parked_calls", "in_flight_requests", "live_sessions"].map((name) => of(name, "asking")),
        state("broken", "cooling down"),
        state("asking", "ok"),
        value(text, "mcp_gateway_max_sessions")
      ]
      return found.join() === "1,0,1,1,1,1,1,1,50"
    })
    const { backends } = await Serving.overview(origin)
    assert.strictEqual(backends.find(({ name }: { name: string }) => name === "asking").parked, 1)
  })

  it("count requests by method and outcome, and skipped lines of garbage", async () => {
    const text = await scrape()
    const samples = [
      "requests_total{backend=\"ready\",method=\"tools/call\",outcome=\"ok\"} 2",
      "requests_total{backend=\"ready\",method=\"other\",outcome=\"ok\"} 1",
      "request_duration_seconds_bucket{backend=\"ready\",method=\"tools/call\",le=\"+Inf\"} 2",
      "garbage_lines_total{backend=\"ready\"} 2"
    ]
    for (const sample of samples) assert.include(text, `\nmcp_gateway_${sample}\n`)
  })

  it("show how many calls wait for a lane", async () => {
    await callTool(urlOf("asking"), "ask", {}, { capabilities: everything })
    const areWaiting = async (count: number) =>
      value(await scrape(), "mcp_gateway_waiting_calls{resource=\"lane\"}") === count
    const leave = Serving.leaving((signal) =>
      callTool(urlOf("asking"), "ask", {}, { capabilities: everything, signal })
    )
    await Kit.eventually("one waits", () => areWaiting(1))
    await leave()
    await Kit.eventually("none waits", () => areWaiting(0))
  })
})

describe("counters", () => {
  it.each([
    "mcp_gateway_closed_sessions_total{backend=\"asking\",reason=\"process exited\"}",
    "mcp_gateway_garbage_lines_total{backend=\"asking\"}",
    "session_pool_close_timeouts_total{pool=\"gateway\"}"
  ])("start at 0, so that the first event is an increase: %s", async (sample) => {
    assert.strictEqual(value(await scrape(), sample), 0)
  })
})

/** The faults of a query in PromQL, such as a metric or a label that does not exist. */
const faultsOf = (query: string): ReadonlyArray<string> => {
  const faults: Array<string> = []
  const known = { ...ofGateway, ...ofPool }
  const names = [...query.matchAll(/\b((?:mcp_gateway|session_pool)_\w+)/g)].map(([, name = ""]) => {
    const base = name.replace(/_(bucket|sum|count)$/, "")
    return known[name] === undefined && known[base]?.type === "histogram" ? base : name
  })
  if (names.length === 0) faults.push("no metric")
  for (const name of names) if (known[name] === undefined) faults.push(`there is no metric ${name}`)
  // Prometheus adds the last three.
  const labels = new Set([...names.flatMap((name) => known[name]?.labels ?? []), "le", "instance", "job"])
  const used = [
    ...[...query.matchAll(/\{([^}]*)\}/g)].flatMap(([, inside = ""]) => [...inside.matchAll(/(\w+)\s*[=!]/g)]),
    ...[...query.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, inside = ""]) => [...inside.matchAll(/(\w+)/g)])
  ].map(([, label = ""]) => label)
  for (const label of used) if (!labels.has(label)) faults.push(`none of them has the label ${label}`)
  // A counter only grows, so a query needs its rate.
  for (const [, name = "", next = ""] of query.matchAll(/\b(\w+_(?:total|bucket))(?:\{[^}]*\})?(.?)/g)) {
    if (next !== "[") faults.push(`${name} without a range`)
  }
  return faults
}

describe("the dashboard", () => {
  const dashboard: Document = JSON.parse(read("deploy/dashboard.json"))

  it("queries metrics and labels that exist", () => {
    const targets: ReadonlyArray<Document> = dashboard.panels.flatMap(({ targets }: Document) => targets)
    assert.isAtLeast(targets.length, 20)
    for (const { expr, legendFormat } of targets) {
      assert.deepStrictEqual(faultsOf(expr), [], expr)
      for (const [, label = ""] of String(legendFormat).matchAll(/\{\{(\w+)\}\}/g)) {
        assert.match(expr, new RegExp(`by \\([^)]*\\b${label}\\b|^mcp_gateway_\\w+\\{backend`), legendFormat)
      }
    }
  })

  it("shows every metric, and no two panels overlap", () => {
    const text = JSON.stringify(dashboard.panels)
    for (const name of Object.keys({ ...ofGateway, ...ofPool })) assert.include(text, name)
    const taken = new Set<string>()
    for (const { gridPos: { h, w, x, y }, title } of dashboard.panels) {
      for (let i = 0; i < w * h; i++) {
        const place = `${x + i % w} ${y + Math.floor(i / w)}`
        assert.isFalse(taken.has(place) || x + w > 24, title)
        taken.add(place)
      }
    }
    const ids = dashboard.panels.map(({ id }: Document) => id)
    assert.strictEqual(new Set(ids).size, ids.length)
  })
})

describe("the alerts", () => {
  it("query metrics and labels that exist, and each has a description", () => {
    const { groups }: Document = Yaml.parse(read("deploy/alerts.yaml"))
    const rules = groups.flatMap(({ rules }: Document) => rules)
    assert.isAtLeast(rules.length, 10)
    for (const { alert, annotations, expr, for: duration = "0m", labels } of rules) {
      assert.deepStrictEqual(faultsOf(expr), [], alert)
      assert.match(alert, /^Mcp[A-Z]\w+$/)
      assert.match(duration, /^\d+[smh]$/)
      assert.oneOf(labels.severity, ["critical", "warning", "info"])
      assert.isString(annotations.summary)
      assert.isString(annotations.description)
      for (const [, label = ""] of JSON.stringify(annotations).matchAll(/\$labels\.(\w+)/g)) {
        const [name = ""] = /mcp_gateway_\w+/.exec(expr) ?? []
        const kept = / by \(([^)]*)\)/.exec(expr)?.[1]?.split(", ") ?? ofGateway[name]?.labels
        assert.isTrue(kept?.includes(label), `${alert} shows a label that its expression keeps`)
      }
    }
    assert.strictEqual(new Set(rules.map(({ alert }: Document) => alert)).size, rules.length)
  })
})
