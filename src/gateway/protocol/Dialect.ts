/** The differences between the eras when a modern client's call goes to a server, one value per era. */
import * as Json from "./Json.ts"
import * as Modern from "./Modern.ts"

/** The revisions that a server speaks: `legacy` up to 2025-11-25, `modern` from 2026-07-28 on. */
export type Era = "legacy" | "modern"

export interface Dialect {
  readonly era: Era
  /** The parameters of a call for the server. `number` is the id of the call there. */
  readonly params: (call: Modern.Call, number: number) => unknown
  /** A result for the client. */
  readonly result: (method: string, result: unknown, serverInfo: unknown) => unknown
  /** An error for the client. */
  readonly error: (error: unknown) => unknown
  /**
   * The server sends requests of its own during calls and keeps a log level, and these messages do not name their call.
   * So one may belong to a cancelled call that the server has not answered.
   */
  readonly isStateful: boolean
}

/** Replaces the client's progress token by the call's number, because tokens of different clients may be the same. */
const withToken = (meta: Json.JsonObject, { request }: Modern.Call, number: number): Json.JsonObject => ({
  ...meta,
  progressToken: request.progressToken === undefined ? undefined : number
})

const metaOf = ({ request }: Modern.Call): Json.JsonObject => Json.objectOf(Json.field(request.params, "_meta"))

export const legacy: Dialect = {
  era: "legacy",
  isStateful: true,
  params: (call, number) => ({
    ...Json.objectOf(call.request.params),
    _meta: Json.unlessEmpty(withToken(Modern.withoutHopKeys(metaOf(call)), call, number)),
    inputResponses: undefined,
    requestState: undefined
  }),
  result: (method, result, serverInfo) => Json.isObject(result) ? Modern.completed(method, result, serverInfo) : result,
  error: Modern.mappedError
}

/** Both ends speak the same revision, so the parts of `_meta` that concern their hop pass unchanged. */
export const modern: Dialect = {
  era: "modern",
  isStateful: false,
  params: (call, number) => ({
    ...Json.objectOf(call.request.params),
    _meta: withToken(metaOf(call), call, number)
  }),
  result: (_method, result) => result,
  error: (error) => error
}
