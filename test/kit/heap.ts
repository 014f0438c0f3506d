/** Measures the live heap of another process. */
/** Asks a process that was started with `--inspect`. `said` is its output, which has the address of the inspector. */
export const inspect = async (said: string) => {
  const socket = new WebSocket(/ws:\S+/.exec(said)?.[0] ?? "")
  await new Promise((resolve, reject) => {
    socket.addEventListener("open", resolve)
    socket.addEventListener("error", () => reject(new Error("the process cannot be inspected")))
  })
  let asked = 0
  const ask = (method: string, params = {}) =>
    new Promise<{ readonly result?: { readonly value?: unknown } }>((resolve) => {
      const id = ++asked
      const listener = ({ data }: MessageEvent) => {
        const message = JSON.parse(String(data))
        if (message.id !== id) return
        socket.removeEventListener("message", listener)
        resolve(message.result)
      }
      socket.addEventListener("message", listener)
      socket.send(JSON.stringify({ id, method, params }))
    })
  const ofExpression = async (expression: string): Promise<number> => {
    await ask("HeapProfiler.collectGarbage")
    return Number((await ask("Runtime.evaluate", { expression })).result?.value)
  }
  return {
    /** Live bytes of that process, with buffers. */
    liveHeap: () => ofExpression("process.memoryUsage().heapUsed + process.memoryUsage().external"),
    /** The same without buffers. */
    heapUsed: () => ofExpression("process.memoryUsage().heapUsed"),
    close: () => socket.close()
  }
}
