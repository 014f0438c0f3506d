/** What a collector sees of requests that are carried out at another replica. */
import { afterAll, assert, beforeAll, describe, it, vi } from "vitest"
import * as Counting from "../kit/cluster/counting.ts"
import type { Cluster } from "../kit/cluster/replicas.ts"
import * as Replicas from "../kit/cluster/replicas.ts"
import type { Span } from "../kit/gateway/collector.ts"
import * as Collector from "../kit/gateway/collector.ts"
import * as Kit from "../kit/gateway/gateway.ts"

vi.setConfig({ testTimeout: 60_000, hookTimeout: 120_000 })

let collector: Collector.Collector
let cluster: Cluster
beforeAll(async () => {
  collector = await Collector.start()
  cluster = await Replicas.start({
    backends: { light: Counting.backend() },
    count: 2,
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url }
  })
})
afterAll(async () => {
  await cluster.stop()
  collector.stop()
})

describe("a call that is forwarded", () => {
  it("is one trace: the client's span, below it the replica's that it came to, below that the one's that carried it out", async () => {
    const [one, two] = cluster.replicas
    if (one === undefined || two === undefined) throw new Error("not two replicas")
    const session = await Counting.open(one.origin, "/mcp/light")
    const [traceId, spanId] = ["0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"]
    const response = await Kit.post(two.origin + session.path, session.id, Kit.toolCall(1, "count"), {
      traceparent: `00-${traceId}-${spanId}-01`
    })
    assert.strictEqual(response.status, 200, await response.text())
    let spans: ReadonlyArray<Span> = []
    await Kit.eventually("both have told the collector", () => {
      spans = collector.spans().filter((span) => span.traceId === traceId)
      return spans.some(({ name }) => name === "forwarded Send") && spans.some(({ name }) => name === "POST")
    })
    const [came, carriedOut] = ["POST", "forwarded Send"].map((name) => spans.filter((span) => span.name === name))
    assert.deepStrictEqual(came?.map((span) => span.parentSpanId), [spanId])
    assert.deepStrictEqual(carriedOut?.map((span) => span.parentSpanId), [came?.[0]?.spanId])
    assert.include(JSON.stringify(came), "gen_ai.tool.name")
  })
})
