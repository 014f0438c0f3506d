/** The questions that a server asks during one call, until the call's client has answered them. */
import * as Json from "../protocol/Json.ts"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"

/** The client's answer to a question. */
export interface Answered {
  /** The server's id of the question. `undefined` if the answer is to send the call again. */
  readonly id: JsonRpc.Id | undefined
  readonly response: unknown
}

export class Questions {
  readonly #open = new Map<string, { readonly id: JsonRpc.Id | undefined; readonly request: Modern.InputRequest }>()
  /** The number of questions that came without a name. */
  #unnamed = 0

  get size(): number {
    return this.#open.size
  }

  requests(): ReadonlyArray<Modern.InputRequest> {
    return [...this.#open.values()].map(({ request }) => request)
  }

  /** Adds a question. Its key is the server's id, if that is a string, or a name that the gateway makes. */
  add(id: JsonRpc.Id | undefined, method: string, params: unknown): void {
    const key = typeof id === "string" ? id : this.#freeKey(method)
    this.#open.set(key, { id, request: { key, method, params: Modern.withoutHop(params) } })
  }

  /** Removes the questions that a client answers, by key. */
  answer(responses: Json.JsonObject): ReadonlyArray<Answered> {
    const answered = [...this.#open].flatMap(([key, { id }]) => {
      const response = Json.field(responses, key)
      return response === undefined ? [] : [{ key, id, response }]
    })
    for (const { key } of answered) this.#open.delete(key)
    return answered
  }

  /** Removes the question with this id, because the server has cancelled it. */
  takeBack(taken: unknown): void {
    for (const [key, { id }] of this.#open) {
      if (id !== undefined && Json.stringify(id) === Json.stringify(taken)) this.#open.delete(key)
    }
  }

  /** Removes all questions. Returns the ids of those that the server still waits for. */
  clear(): ReadonlyArray<JsonRpc.Id> {
    const ids = [...this.#open.values()].flatMap(({ id }) => id === undefined ? [] : [id])
    this.#open.clear()
    return ids
  }

  /** A key for a question without a name. It differs from all names that the server has used for this call. */
  #freeKey(method: string): string {
    const key = `${method.split("/")[0] ?? ""}-${++this.#unnamed}`
    return this.#open.has(key) ? this.#freeKey(method) : key
  }
}
