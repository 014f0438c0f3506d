/** Splits a byte stream into lines of UTF-8 with a bounded length. A chunk may end anywhere, even within a character. */

export interface LineSplitter {
  /** Takes the next chunk and returns the lines that it completes. Returns `"TooLong"` once a line exceeds the bound. */
  readonly push: (chunk: Uint8Array) => ReadonlyArray<string> | "TooLong"
}

const newline = 0x0a

/** Makes a splitter for lines of at most `maxBytes` bytes. Leaves out blank lines. */
export const make = (maxBytes: number): LineSplitter => {
  // Joins the bytes of a line before decoding them, so no character is cut in two.
  const decoder = new TextDecoder()
  let parts: Array<Uint8Array> = []
  let length = 0
  const take = (end: Uint8Array): string => {
    if (parts.length === 0) return decoder.decode(end)
    const line = new Uint8Array(length + end.length)
    let at = 0
    for (const part of parts) {
      line.set(part, at)
      at += part.length
    }
    line.set(end, at)
    parts = []
    length = 0
    return decoder.decode(line)
  }
  return {
    push: (chunk) => {
      const lines: Array<string> = []
      let start = 0
      for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, start)) {
        if (length + end - start > maxBytes) return "TooLong"
        const line = take(chunk.subarray(start, end))
        if (line.trim() !== "") lines.push(line)
        start = end + 1
      }
      if (start < chunk.length) {
        // Copies the rest, because the sender may reuse the memory of the chunk.
        parts.push(chunk.slice(start))
        length += chunk.length - start
      }
      return length > maxBytes ? "TooLong" : lines
    }
  }
}
