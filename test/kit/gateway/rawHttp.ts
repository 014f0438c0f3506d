/** HTTP/1.1 on a socket, for requests that no client library sends: any bytes out, and the exact bytes of the response. */
import type { Socket } from "node:net"
import { connect } from "node:net"

export interface RawResponse {
  readonly status: number
  readonly headers: ReadonlyMap<string, string>
  readonly body: string
}

export interface Expectations {
  /** An answer to HEAD has no body. */
  readonly head?: boolean
  /** Return after the header and the first bytes of an endless event stream. */
  readonly firstBytes?: boolean
  /** Half-close the connection after the request. */
  readonly end?: boolean
}

export interface RawConnection {
  readonly socket: Socket
  /** True if another request can be sent. */
  readonly usable: () => boolean
  /** Bytes that belong to no response. */
  readonly surplus: () => string
  /** Sends each part in its own write. Returns the response, or `undefined` if the connection ends without one. */
  readonly exchange: (parts: ReadonlyArray<Buffer>, expect?: Expectations) => Promise<RawResponse | undefined>
}

/** The longest wait for an answer, in milliseconds. */
const patience = 20_000

export const open = async (port: number): Promise<RawConnection> => {
  const socket = connect(port, "127.0.0.1").setNoDelay(true)
  let received = Buffer.alloc(0)
  let usedAt = Date.now()
  let closed = false
  let last = false
  let changed = () => {}
  const close = () => {
    closed = true
    changed()
  }
  socket.on("data", (chunk) => {
    received = Buffer.concat([received, chunk])
    changed()
  }).on("error", () => undefined).on("end", close).on("close", close)
  await new Promise((resolve) => socket.once("connect", resolve).once("close", resolve))

  const exchange: RawConnection["exchange"] = async (parts, expect = {}) => {
    for (const part of parts) socket.write(part)
    if (expect.end === true) socket.end()
    const until = Date.now() + patience
    for (;;) {
      const taken = take(received, closed, expect)
      if (taken !== undefined) {
        received = received.subarray(taken.length)
        usedAt = Date.now()
        if (taken.response.headers.get("connection") === "close") last = true
        return taken.response
      }
      if (closed) {
        if (received.length > 0) throw new Error(`half an answer: ${received.toString("latin1").slice(0, 500)}`)
        return undefined
      }
      if (Date.now() > until) throw new Error(`no answer; so far: ${received.toString("latin1").slice(0, 500)}`)
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 1000)
        changed = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    }
  }
  return {
    socket,
    // After a pause the server may be about to close the connection.
    usable: () => !closed && !last && socket.writable && received.length === 0 && Date.now() - usedAt < 1000,
    surplus: () => received.toString("latin1"),
    exchange
  }
}

interface Taken {
  readonly response: RawResponse
  /** The number of its bytes. */
  readonly length: number
}

/** The first response in some bytes, without interim ones. `undefined` if it is incomplete. */
const take = (bytes: Buffer, closed: boolean, expect: Expectations): Taken | undefined => {
  const headEnd = bytes.indexOf("\r\n\r\n")
  if (headEnd < 0) return undefined
  const [first = "", ...lines] = bytes.subarray(0, headEnd).toString("latin1").split("\r\n")
  const status = Number(/^HTTP\/1\.1 (\d{3})(?: |$)/.exec(first)?.[1])
  if (Number.isNaN(status)) throw new Error(`no status line: ${first.slice(0, 100)}`)
  if (status >= 100 && status < 200 && status !== 101) {
    const next = take(bytes.subarray(headEnd + 4), closed, expect)
    return next === undefined ? undefined : { ...next, length: next.length + headEnd + 4 }
  }
  const headers = new Map<string, string>()
  for (const line of lines) {
    const colon = line.indexOf(":")
    const name = line.slice(0, colon).toLowerCase()
    if (headers.has(name)) throw new Error(`the header ${name} comes twice`)
    headers.set(name, line.slice(colon + 1).trim())
  }
  const body = bytes.subarray(headEnd + 4)
  const made = (text: string, length: number): Taken => ({
    response: { status, headers, body: text },
    length: headEnd + 4 + length
  })
  if (expect.head === true || status === 204 || status === 101) return made("", 0)
  const length = headers.get("content-length")
  if (length !== undefined) {
    const whole = body.subarray(0, Number(length))
    return whole.length < Number(length) ? undefined : made(whole.toString("utf8"), whole.length)
  }
  if (headers.get("transfer-encoding") === "chunked") {
    if (expect.firstBytes === true && body.length > 0) return made(body.toString("utf8"), body.length)
    const decoded = unchunk(body)
    return decoded === undefined ? undefined : made(decoded.text, decoded.length)
  }
  return closed ? made(body.toString("utf8"), body.length) : undefined
}

const unchunk = (bytes: Buffer): { readonly text: string; readonly length: number } | undefined => {
  const chunks: Array<Buffer> = []
  let at = 0
  for (;;) {
    const lineEnd = bytes.indexOf("\r\n", at)
    if (lineEnd < 0) return undefined
    const size = Number.parseInt(bytes.subarray(at, lineEnd).toString("latin1"), 16)
    const end = lineEnd + 2 + size
    if (bytes.length < end + 2) return undefined
    chunks.push(bytes.subarray(lineEnd + 2, end))
    at = end + 2
    if (size === 0) return { text: Buffer.concat(chunks).toString("utf8"), length: at }
  }
}
