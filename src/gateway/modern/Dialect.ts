/** What differs between the eras when a modern client's call is handed to a server, as two values. */
import * as JsonText from "../messages/JsonText.ts"
import * as Modern from "./Modern.ts"

/** Which revisions a server speaks. */
export type Era = "legacy" | "modern"

export interface Dialect {
  readonly era: Era
  /** JSON of a call's parameters for the server, which knows the call by this number. */
  readonly params: (call: Modern.Call, number: number) => string
  /** JSON of a result for the client. */
  readonly result: (method: string, result: string, serverInfo: string | undefined) => string
  /** JSON of an error for the client. */
  readonly error: (error: string) => string
  /**
   * It sends requests of its own in the middle of calls, and keeps a log level; what it sends for one call does not say for
   * which. So an unanswered call that was cancelled may still have a say.
   */
  readonly isStateful: boolean
}

/** The progress token of a call is its number: those that clients choose may be the same. */
const withToken = (meta: string, { request }: Modern.Call, number: number): string =>
  JsonText.edit(meta, { progressToken: request.progressToken === undefined ? undefined : String(number) })

const metaOf = ({ params }: Modern.Call): string => JsonText.member(params, "_meta") ?? "{}"

export const legacy: Dialect = {
  era: "legacy",
  isStateful: true,
  params: (call, number) => {
    const meta = withToken(Modern.withoutHopKeys(metaOf(call)), call, number)
    return JsonText.edit(call.params, {
      _meta: meta === "{}" ? undefined : meta,
      inputResponses: undefined,
      requestState: undefined
    })
  },
  result: (method, result, serverInfo) =>
    JsonText.isObject(result) ? Modern.completed(method, result, serverInfo) : result,
  error: Modern.mappedError
}

/** Both ends speak the same: what belongs to their hop passes. */
export const modern: Dialect = {
  era: "modern",
  isStateful: false,
  params: (call, number) => JsonText.edit(call.params, { _meta: withToken(metaOf(call), call, number) }),
  result: (_method, result) => result,
  error: (error) => error
}
