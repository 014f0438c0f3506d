/** Splits a byte stream into lines of UTF-8 with a bounded length. A chunk may end anywhere, even within a character. */

const newline = 0x0a

/**
 * Makes a splitter for lines of at most `maxBytes` bytes. It takes the next chunk and returns the lines that the chunk completes, but
 * no blank ones. It returns `"TooLong"` once a line exceeds the bound.
 */
export const make = (maxBytes: number): (chunk: Uint8Array) => ReadonlyArray<string> | "TooLong" => {
  const decoder = new TextDecoder()
  /** The parts of the line that is not complete, and their length. Joined before they are decoded, so no character is cut in two. */
  let parts: Array<Uint8Array> = []
  let length = 0
  return (chunk) => {
    const lines: Array<string> = []
    let start = 0
    for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, start)) {
      if (length + end - start > maxBytes) return "TooLong"
      const last = chunk.subarray(start, end)
      const line = decoder.decode(length === 0 ? last : Buffer.concat([...parts, last]))
      if (line.trim() !== "") lines.push(line)
      parts = []
      length = 0
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
