/** A process on stdio with as little around it as there can be, for the bridges that are limits (`bare.ts`, `effectHttp.ts`). */
import { spawn } from "node:child_process"

/** Gets what belongs to one request: notifications of progress, and at last its answer. */
export type Receiver = (line: string, isAnswer: boolean) => void

export interface RawChild {
  /** Hands it a message; false if no answer to it comes. */
  readonly send: (text: string, receive: Receiver) => boolean
  readonly end: () => void
}

export const open = (command: string, args: ReadonlyArray<string>): RawChild => {
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] })
  const waiting = new Map<unknown, Receiver>()
  let rest = ""
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    // A long line comes in many chunks; it is joined once.
    rest += chunk
    if (!chunk.includes("\n")) return
    const lines = rest.split("\n")
    rest = lines.pop() ?? ""
    lines.forEach(receive)
  })
  const receive = (line: string) => {
    const { id, params } = JSON.parse(line)
    const receiver = waiting.get(id ?? params.progressToken)
    if (id !== undefined) waiting.delete(id)
    receiver?.(line, id !== undefined)
  }
  return {
    send: (text, receiver) => {
      const { id } = JSON.parse(text)
      if (id !== undefined) waiting.set(id, receiver)
      child.stdin.write(`${text}\n`)
      return id !== undefined
    },
    end: () => child.stdin.end()
  }
}
