/**
 * A persistent first-in first-out queue whose entries can also leave from the middle.
 *
 * Callers that wait for a place stand in it; an interrupted one leaves wherever it stands. Every operation is a few
 * `HashMap` steps, whatever the length.
 */
import { HashMap, Option } from "effect"

export interface Queue<out V> {
  /** No entry has a ticket below this one. */
  readonly head: number
  /** The ticket of the next entry. */
  readonly next: number
  readonly entries: HashMap.HashMap<number, V>
}

export const empty: Queue<never> = { head: 0, next: 0, entries: HashMap.empty() }

export const size = <V>(self: Queue<V>): number => HashMap.size(self.entries)

/** Adds an entry at the end, under the ticket `self.next`. */
export const push = <V>(self: Queue<V>, value: V): Queue<V> => ({
  head: self.head,
  next: self.next + 1,
  entries: HashMap.set(self.entries, self.next, value)
})

/** Takes the entry with this ticket out, if it is there. */
export const remove = <V>(self: Queue<V>, ticket: number): Queue<V> => {
  const entries = HashMap.remove(self.entries, ticket)
  if (HashMap.isEmpty(entries)) return { head: self.next, next: self.next, entries }
  let head = self.head
  // Each ticket is stepped over once in the life of the queue, so this loop costs nothing in the long run.
  while (!HashMap.has(entries, head)) head++
  return { head, next: self.next, entries }
}

/** The entries in the order of their arrival, with their tickets. */
export const entries = function*<V>(self: Queue<V>): IterableIterator<readonly [ticket: number, value: V]> {
  for (let ticket = self.head; ticket < self.next; ticket++) {
    const value = HashMap.get(self.entries, ticket)
    if (Option.isSome(value)) yield [ticket, value.value]
  }
}
