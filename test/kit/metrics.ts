/** Metrics as Prometheus reads them, and as the README's tables tell of them. */
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

/** What the README documents of them: a row is `name`, type, unit, labels, meaning. */
export const documented = (prefix: string): Metrics =>
  Object.fromEntries(
    readFileSync(new URL("../../README.md", import.meta.url), "utf8").split("\n").flatMap((line) => {
      const [, name = "", type = "", unit = "", labels = "", meaning = ""] =
        /^\| `(\w+)` \| (\w+) \| ([^|]+) \| ([^|]+) \| (.+) \|$/.exec(line) ?? []
      if (!name.startsWith(prefix)) return []
      if (unit === "" || meaning === "") throw new Error(`${name} has no unit or no meaning`)
      return [[name, { type, labels: [...labels.matchAll(/`(\w+)`/g)].map(([, label]) => label ?? "") }]]
    })
  )
