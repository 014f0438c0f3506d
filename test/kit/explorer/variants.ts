/**
 * Broken variants of the pool, one for each class of fault that other pools had. The explorer must find all of them.
 *
 * Grouped by file of `src/internal`, and named by the fault. Each variant lists pairs of texts: one that the file has exactly once, and
 * its replacement.
 */
export const variants: Record<string, Record<string, ReadonlyArray<string>>> = {
  "transitions.ts": {
    "a touch is not counted": ["requestCount: live.requestCount + 1", "requestCount: live.requestCount"],
    "an overdue session is handed out": ["overdue(live, now) !== undefined || (lease", "(lease"],
    "two launches run for one key": [`"Launching":\n      d.count`, `"Launching":\n      break\n      d.count`],
    "the first interrupted caller ends a launch": ["slot.callers > 1) return d.set", "slot.callers < 0) return d.set"],
    "a failed launch keeps its place": ["  return Places.discard(d, launch)\n  }\n  d.", "  return\n  }\n  d."],
    "a use ends when it starts": ["lastUsedAt: d.now, leases: slot.leases - 1", "leases: slot.leases - 1"],
    "a session that becomes idle serves no waiter": ["else if (live.leases === 0) Places.serve(d)", ""],
    "a place that becomes free serves no waiter": ["opening.group)\n    Places.serve(d)", "opening.group)"],
    "the end forgets the waiters": ["d.complete(launch.done, closedExit())\n    if (launch.adopts", "if (launch.adopts"]
  },
  "places.ts": {
    "a retired session closes under its leases": ["holders: leases, hasPlace", "holders: 0, hasPlace"],
    "the limit counts only the sessions in use": ["  d.state.places.used < d.options", "  d.state.active < d.options"],
    "the most recently used session is evicted": ["Ordered.first(idle)", "[...Ordered.values(idle)].at(-1)"],
    "the newest waiter is served first": [
      "Ordered.values(d.state.waiting)",
      "[...Ordered.values(d.state.waiting)].reverse()"
    ],
    "set drops the session that it replaces": [`retire(d, slot, "Replaced")`, "d.state.live--"]
  },
  "state.ts": {
    "a release finds its session by its key": [" && slot.session.id === identity.id ? slot", " ? slot"]
  },
  "options.ts": {
    "a waiter counts on a slow close": ["patience: Math.min(5000, acquireTimeout / 2)", "patience: Infinity"]
  },
  "shell.ts": {
    "a dead connection stays": [`Transitions.retireById(d, session, "Disconnected")`, "false"]
  },
  "sweeping.ts": {
    "the cleanup stops": ["    return sweep(self)\n", "    return Effect.never\n"],
    "the fibers of the pool outlive it": ["  yield* Scope.close(self.background, Exit.void)\n", ""]
  },
  "leasing.ts": {
    "an interrupted caller is still counted": ["(d) => Transitions.abandon(d, launch)", "() => undefined"],
    "lookup and touch are two steps": [
      "  Ref.modify(self.state, (state) => {",
      "  Effect.flatMap(Ref.get(self.state), (state) => {",
      "return [lease, next]",
      "return Effect.as(Ref.set(self.state, next), lease)"
    ]
  }
}
