/** Whether what came back to a case of the HTTP fuzz is one of the outcomes that the case allows. */
import type { RawResponse } from "../gateway/rawHttp.ts"
import type { BodyRule, Case, Outcome } from "./parts.ts"

/** Why it is not; `undefined` if it is. `count`: what the session's process has counted at least. */
export const breaks = (
  outcomes: ReadonlyArray<Outcome>,
  said: RawResponse | undefined,
  count: number
): string | undefined => {
  const listed = outcomes.filter(({ status }) => status === (said?.status ?? "closed"))
  if (listed.length === 0) return "a status that is not listed"
  const reasons = listed.map(({ body }) => said === undefined ? undefined : breaksRule(body, said, count))
  return reasons.includes(undefined) ? undefined : reasons.join("; ")
}

const breaksRule = (rule: BodyRule, { body, headers }: RawResponse, count: number): string | undefined => {
  const opens = rule.is === "answers" && rule.opens === true
  if (opens !== headers.has("mcp-session-id")) return opens ? "no new session" : "a new session"
  const type = headers.get("content-type") ?? ""
  const value = type === "application/json" ? parsed(body) : undefined
  switch (rule.is) {
    case "any":
      return undefined
    case "empty":
      return body === "" ? undefined : "a body where none belongs"
    case "nowhere":
      return body.startsWith("Not found. MCP is at /mcp/NAME") && type.startsWith("text/plain")
        ? undefined
        : "not where MCP is"
    case "no OAuth":
      return value?.["error"] === "invalid_request" &&
          /has no OAuth.*Bearer KEY/.test(String(value["error_description"]))
        ? undefined
        : "not that there is no OAuth, and how to show a key"
    case "page":
      return body.length > 0 ? undefined : "no body"
    case "events":
      return type === "text/event-stream" ? undefined : "no event stream"
    case "admin error":
      return typeof value?.["error"] === "string" ? undefined : "no error in JSON"
    case "error": {
      const { code, message } = Object(value?.["error"])
      if (value?.["jsonrpc"] !== "2.0" || typeof message !== "string") return "no JSON-RPC error"
      if (code !== rule.code) return `the code ${code}, not ${rule.code}`
      return [null, ...rule.ids].includes(value["id"]) ? undefined : "an id that is not the request's"
    }
    case "answers": {
      // The first event of a stream of 2025-11-25 has no data.
      const events = body.split("\n").filter((line) => /^data: ./.test(line))
      return answers(rule, value === undefined ? events.map((line) => parsed(line.slice(6))) : [value], count)
    }
  }
}

type Message = { readonly [name: string]: unknown } | undefined

/** Each id is answered once, by a result or an error. */
const answers = (
  rule: Extract<BodyRule, { readonly is: "answers" }>,
  messages: ReadonlyArray<Message>,
  count: number
): string | undefined => {
  const left = [...rule.ids]
  for (const message of messages) {
    const at = left.indexOf(message?.["id"])
    if (at < 0) return `an answer to ${JSON.stringify(message?.["id"])}`
    left.splice(at, 1)
    if ((message?.["error"] === undefined) === (message?.["result"] === undefined)) {
      return "no result and no error, or both"
    }
  }
  if (left.length > 0) return `no answer to ${JSON.stringify(left)}`
  const text = Object(messages[0]?.["result"]).content?.[0]?.text
  if (rule.count === true && !(Number(text) > count)) return `the count ${text} after ${count}`
  return rule.echo === undefined || text === rule.echo ? undefined : "the message has changed on its way"
}

const parsed = (text: string): Message => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** A case that failed, for whoever has to find out why. */
export const describe = (test: Case, said: RawResponse | undefined, reason: string): string => {
  const quoted = (text: string) => JSON.stringify(text.slice(0, 1000))
  return [
    `case ${test.index} (${test.kind}): ${reason}`,
    `  sent: ${quoted(test.head)} + ${quoted(test.body.toString("latin1"))}`,
    `  came: ${said === undefined ? "nothing" : `${said.status} ${quoted(said.body)}`}`,
    `  allowed: ${test.outcomes.map(({ body, status }) => `${status} ${quoted(JSON.stringify(body))}`).join(", ")}`
  ].join("\n")
}
