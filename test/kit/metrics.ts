/** Metrics as Prometheus reads them, and as the manual lists them. */
import { readFileSync } from "node:fs"

/** The type and the labels of each metric. */
export type Metrics = Readonly<Record<string, { readonly type: string; readonly labels: ReadonlyArray<string> }>>

/** What a text in Prometheus' format holds of the metrics with a prefix. */
export const exported = (text: string, prefix: string): Metrics => {
  const found: Record<string, { readonly type: string; readonly labels: Array<string> }> = {}
  for (const line of text.split("\n")) {
    const [, name = "", type = ""] = /^# TYPE (\S+) (\S+)$/.exec(line) ?? []
    if (name.startsWith(prefix)) found[name] = { type, labels: [] }
    const [, sample = "", labels = ""] = /^([a-z_]+)(?:\{(.*)\})? \S+$/.exec(line) ?? []
    const metric = found[sample] ?? found[sample.replace(/_(bucket|sum|count)$/, "")]
    for (const [, label = ""] of labels.matchAll(/(\w+)="/g)) {
      // Of every histogram's buckets.
      if (label !== "le" && metric?.labels.includes(label) === false) metric.labels.push(label)
    }
  }
  return found
}

/** The metrics of the pool, from the table of the library's manual: name, type, labels, meaning. */
export const documented = (): Metrics =>
  Object.fromEntries(
    readFileSync(new URL("../../src/README.md", import.meta.url), "utf8").split("\n")
      .filter((line) => line.startsWith("| `session_pool_"))
      .map((line) => {
        const [name = "", type = "", labels = ""] = line.replaceAll("`", "").split(" | ")
        return [name.slice(2), { type, labels: labels.split(", ") }]
      })
  )
