/** A process on stdio with the least code around it, for the floors `bare.ts` and `effectHttp.ts`. */
import { spawn } from "node:child_process"

/** Gets the messages of one request: notifications of progress, and last its answer. */
export type Receiver = (line: string, isAnswer: boolean) => void

export interface RawChild {
  /** Sends a message. False if it is a notification, which gets no answer. */
  readonly send: (text: string, receive: Receiver) => boolean
  readonly end: () => void
}

export const open = (command: string, args: ReadonlyArray<string>): RawChild => {
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] })
  const waiting = new Map<unknown, Receiver>()
  let rest = ""
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    // A long line arrives in many chunks, and is split only at its end.
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
