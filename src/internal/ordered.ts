/**
 * A persistent set of items in the order of their tickets. The pool keeps three: waiters in the order in which they asked, idle sessions
 * by last use, and remembered failures by the time at which they expire.
 *
 * The set is a 32-way radix trie. A new ticket is always the largest, so the trie grows on the right, and its depth grows with the
 * tickets. An empty node is removed, so the leftmost path always leads to the first item.
 */

const width = 32

/** `slots` has one entry for each bit set in `bits`, in order: a child, or on the lowest level an item. */
interface Node {
  readonly bits: number
  readonly slots: ReadonlyArray<unknown>
}

const noNode: Node = { bits: 0, slots: [] }

export interface Ordered<out V> {
  readonly size: number
  /** The trie has room for tickets below `32 ** depth`. */
  readonly depth: number
  readonly root: Node
  /** Never set. It only carries the type of the items. */
  readonly _V?: V
}

export const empty: Ordered<never> = { size: 0, depth: 1, root: noNode }

const bitCount = (bits: number): number => {
  const pairs = bits - ((bits >>> 1) & 0x55555555)
  const fours = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333)
  return Math.imul((fours + (fours >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24
}

/** The digit of a ticket on a level; level 1 is the lowest. Divides instead of shifting, because a ticket may exceed 32 bits. */
const digit = (ticket: number, level: number): number => Math.floor(ticket / width ** (level - 1)) % width

/** The child of a node above the lowest level. `insert` puts only nodes there. */
const child = (node: Node, at: number): Node => node.slots[at] as Node

const insertAt = (node: Node, level: number, ticket: number, item: unknown): Node => {
  const bit = 1 << digit(ticket, level)
  const at = bitCount(node.bits & (bit - 1))
  const has = (node.bits & bit) !== 0
  const slot = level === 1 ? item : insertAt(has ? child(node, at) : noNode, level - 1, ticket, item)
  const slots = node.slots.slice()
  slots.splice(at, has ? 1 : 0, slot)
  return { bits: node.bits | bit, slots }
}

const removeAt = (node: Node, level: number, ticket: number): Node => {
  const bit = 1 << digit(ticket, level)
  const at = bitCount(node.bits & (bit - 1))
  const slots = node.slots.slice()
  const left = level === 1 ? noNode : removeAt(child(node, at), level - 1, ticket)
  if (left.bits !== 0) {
    slots[at] = left
    return { bits: node.bits, slots }
  }
  slots.splice(at, 1)
  return { bits: node.bits & ~bit, slots }
}

/** The item under a ticket, or `undefined`. */
export const get = <V>(self: Ordered<V>, ticket: number): V | undefined => {
  if (ticket >= width ** self.depth) return undefined
  let node = self.root
  for (let level = self.depth;; level--) {
    const bit = 1 << digit(ticket, level)
    if ((node.bits & bit) === 0) return undefined
    const at = bitCount(node.bits & (bit - 1))
    // The lowest level holds the items that `insert` was given.
    if (level === 1) return node.slots[at] as V
    node = child(node, at)
  }
}

/** Adds an item under a ticket that is not in the set. */
export const insert = <V>(self: Ordered<V>, ticket: number, item: V): Ordered<V> => {
  let { depth, root } = self
  for (; ticket >= width ** depth; depth++) {
    if (root.bits !== 0) root = { bits: 1, slots: [root] }
  }
  return { size: self.size + 1, depth, root: insertAt(root, depth, ticket, item) }
}

/** Takes out the item under a ticket, if there is one. */
export const remove = <V>(self: Ordered<V>, ticket: number): Ordered<V> =>
  get(self, ticket) === undefined ? self : {
    size: self.size - 1,
    depth: self.depth,
    root: removeAt(self.root, self.depth, ticket)
  }

/** The item with the smallest ticket, or `undefined` if the set is empty. */
export const first = <V>(self: Ordered<V>): V | undefined => {
  let node = self.root
  if (node.bits === 0) return undefined
  for (let level = self.depth; level > 1; level--) node = child(node, 0)
  return node.slots[0] as V
}

/** The items in the order of their tickets. */
export const values = <V>(self: Ordered<V>): IterableIterator<V> => below(self.root, self.depth)

const below = function*<V>(node: Node, level: number): IterableIterator<V> {
  for (let at = 0; at < node.slots.length; at++) {
    if (level === 1) yield node.slots[at] as V
    else yield* below<V>(child(node, at), level - 1)
  }
}
