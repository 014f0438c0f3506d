/**
 * The pool in brief, for callers who come one after another and find every launch done at once: what is there, what is
 * still leased, what is closed. `model.ts` is the same in full, with callers who wait and things that take time.
 */
export interface Options {
  readonly capacity: number
  readonly groupCapacity: number
  readonly maxErrorCount: number
  readonly validateAfter: number
  readonly failureTimeToLive: number
  readonly idleTimeToLive: (key: string) => number
}

export interface Entry {
  readonly id: number
  readonly key: string
  leases: number
  requests: number
  errors: number
  lastUsedAt: number
  validatedAt: number
  valid: boolean
}

/** The group of a key is its first letter. */
export const groupOf = (key: string): string => key.slice(0, 1)

export class BriefModel {
  now = 0
  lastId = 0
  readonly live = new Map<string, Entry>()
  readonly retired = new Set<Entry>()
  readonly closed: Array<number> = []
  private readonly coolUntil = new Map<string, number>()
  private readonly options: Options

  constructor(options: Options) {
    this.options = options
  }

  retire(entry: Entry | undefined): boolean {
    if (entry === undefined || !this.live.delete(entry.key)) return false
    if (entry.leases > 0) this.retired.add(entry)
    else this.closed.push(entry.id)
    return true
  }

  /** Makes room for one more, by the eviction of the longest idle; false if that takes a wait. */
  private room(key: string): boolean {
    const open = [...this.live.values(), ...this.retired]
    const full = open.filter((entry) => groupOf(entry.key) === groupOf(key)).length >= this.options.groupCapacity
    if (!full && open.length < this.options.capacity) return true
    const idle = [...this.live.values()].filter((entry) =>
      entry.leases === 0 && (!full || groupOf(entry.key) === groupOf(key))
    )
    return this.retire(idle.toSorted((x, y) => x.lastUsedAt - y.lastUsedAt || x.id - y.id)[0])
  }

  open(key: string, old?: Entry): Entry {
    const { errors, requests } = old ?? { errors: 0, requests: 0 }
    const times = { lastUsedAt: this.now, validatedAt: this.now }
    const entry = { id: ++this.lastId, key, leases: 0, requests, errors, valid: true, ...times }
    this.live.set(key, entry)
    return entry
  }

  /** Whether an open connection finds a place; `set` replaces and retires the present one. */
  set(key: string): boolean {
    const old = this.live.get(key)
    const fits = this.room(key)
    if (!fits) this.closed.push(++this.lastId)
    if (!fits) return false
    this.retire(old)
    this.coolUntil.delete(key)
    this.open(key, old)
    return true
  }

  lease(key: string, lookupFails: boolean): Entry | "Full" | "Refused" {
    let entry = this.live.get(key)
    if (entry?.leases === 0 && this.now - Math.max(entry.lastUsedAt, entry.validatedAt) > this.options.validateAfter) {
      entry.validatedAt = this.now
      if (!entry.valid) this.retire(entry)
    }
    entry = this.live.get(key)
    if (entry === undefined) {
      if ((this.coolUntil.get(key) ?? 0) > this.now) return "Refused"
      if (!this.room(key)) return "Full"
      if (lookupFails) this.coolUntil.set(key, this.now + this.options.failureTimeToLive)
      if (lookupFails) return "Refused"
      entry = this.open(key)
    }
    entry.leases++
    this.touch(key)
    return entry
  }

  touch(key: string): number | undefined {
    const entry = this.live.get(key)
    if (entry === undefined) return undefined
    entry.requests++
    entry.lastUsedAt = this.now
    return entry.id
  }

  release(entry: Entry, how: "success" | "error" | "neither"): void {
    entry.leases--
    if (this.live.get(entry.key) !== entry) {
      if (entry.leases === 0 && this.retired.delete(entry)) this.closed.push(entry.id)
      return
    }
    entry.lastUsedAt = this.now
    if (how === "success") entry.errors = 0
    if (how === "error") this.error(entry.key)
    if (entry.leases === 0 && this.options.idleTimeToLive(entry.key) === 0) this.retire(this.live.get(entry.key))
  }

  error(key: string): void {
    const entry = this.live.get(key)
    if (entry !== undefined && ++entry.errors >= this.options.maxErrorCount) this.retire(entry)
  }

  invalidate(key: string): boolean {
    this.coolUntil.delete(key)
    return this.retire(this.live.get(key))
  }

  sweep(): number {
    const expired = [...this.live.values()].filter(({ key, lastUsedAt, leases }) =>
      leases === 0 && this.now - lastUsedAt > this.options.idleTimeToLive(key)
    )
    return expired.filter((entry) => this.retire(entry)).length
  }

  /** The end; what is still leased closes with its last lease, or when the time to drain is over. */
  end(): void {
    for (const entry of this.live.values()) this.retire(entry)
  }

  drained(): void {
    for (const entry of this.retired) this.closed.push(entry.id)
    this.retired.clear()
  }
}
