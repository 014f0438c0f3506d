/**
 * The check of keys and groups. `Equal` compares objects by their properties. So all instances of a class with private state
 * (`Headers`, `URLSearchParams`, `new Number(1)`) equal each other, and one client would get the connection of another.
 */
import { Equal } from "effect"

/** Built-in classes that have no own properties, but whose content `Equal` compares. */
const comparable = [Date, RegExp, Map, Set, URL, ArrayBuffer]

/** The name of the first class inside a key whose instances all equal each other; `undefined` for a good key. */
const opaquePart = (key: unknown, seen: Set<unknown>): string | undefined => {
  // Functions are compared by reference.
  if (typeof key !== "object" || key === null || Equal.isEqual(key) || ArrayBuffer.isView(key) || seen.has(key)) {
    return undefined
  }
  seen.add(key)
  const own = Reflect.ownKeys(key)
  const isPlain = Object.getPrototypeOf(key) === null || key.constructor === Object
  if (own.length === 0 && !isPlain && !comparable.some((known) => key instanceof known)) return key.constructor.name
  const parts = key instanceof Map || key instanceof Set ? Array.from(key) : own.map((name) => Reflect.get(key, name))
  for (const part of parts) {
    const opaque = opaquePart(part, seen)
    if (opaque !== undefined) return opaque
  }
  return undefined
}

/**
 * Throws if a key or group contains an object that equals every other instance of its class. The check does not look into objects
 * that implement `Equal`, such as an `Option`.
 */
export const checkUnsafe = (what: "key" | "group", value: unknown): void => {
  const opaque = opaquePart(value, new Set())
  if (opaque === undefined) return
  throw new Error(
    `SessionPool: a ${what} contains an instance of ${opaque}. Its state is private, so all instances are equal and would share a ` +
      `session. Use a string, a struct, Data.Class, or a class that implements Equal.`
  )
}
