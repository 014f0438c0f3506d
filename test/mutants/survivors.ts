/**
 * The mutants that survive, grouped by reason. A mutant has the name that `npm run mutants` prints: file, declaration, original text and
 * replacement. A number tells mutants with the same text apart.
 */
interface Survivors {
  readonly why: string
  readonly mutants: ReadonlyArray<string>
}

const transitions: ReadonlyArray<Survivors> = [
  {
    why:
      "The condition only saves time. The code behind it would find nothing to do, or reach the same result more slowly.",
    mutants: [
      "internal/places.ts isGroupFull: group !== undefined → true",
      "internal/places.ts addIdle: !d.options.isBounded → false",
      "internal/places.ts removeIdle: ticket === 0 → false",
      "internal/places.ts serve: d.state.waiting.size === 0 → false",
      "internal/transitions.ts hit: options.isBounded → true",
      "internal/transitions.ts remember: failureTimeToLive === 0 → false",
      "internal/transitions.ts release: live.leases === 0 → true (2)"
    ]
  },
  {
    why:
      "A step frees one place, adds one waiter or makes one session idle. So one eviction is enough, and nothing follows it.",
    mutants: [
      "internal/places.ts serve: Ordered.get(d.state.waiting, id) === undefined → false",
      "internal/places.ts serve: !evictFor(d, waiter, undefined) → evictFor(d, waiter, undefined)",
      "internal/places.ts evictFor: false → true",
      "internal/places.ts evictFor: true → false (2)"
    ]
  },
  {
    why:
      "Only the compiler needs the check. A waiting launch has a Waiting slot, an idle session a Live one, a retired session no `done`.",
    mutants: [
      "internal/places.ts leastRecentlyUsed: slot?._tag === \"Live\" → true",
      "internal/places.ts dequeue: Ordered.get(d.state.waiting, id)?.askedAt → Ordered.get(d.state.waiting, id).askedAt",
      "internal/places.ts grant: slot?._tag === \"Waiting\" → true",
      "internal/places.ts grant: slot?._tag → slot._tag",
      "internal/transitions.ts acquire: Ordered.get(d.state.waiting, slot.launch.id)?.isPromised → Ordered.get(d.state.waiting, slot.launch.id).isPromised",
      "internal/transitions.ts isExpired: slot._tag === \"Failed\" → true",
      "internal/transitions.ts expire: slot?._tag === \"Live\" → true (2)",
      "internal/transitions.ts shutdown: leaving.reason !== undefined → false",
      "internal/transitions.ts land: leaving !== undefined → true",
      "internal/transitions.ts remember: oldest !== undefined → true"
    ]
  },
  {
    why: "Any text that is neither `success` nor `error` means the same.",
    mutants: ["internal/transitions.ts abandon: \"neither\" → \"\""]
  }
]

const shell: ReadonlyArray<Survivors> = [
  {
    why: "Only finds candidates. The step that follows checks each again.",
    mutants: [
      "internal/sweeping.ts checkAllIdle: slot._tag === \"Live\" && slot.leases === 0 → true",
      "internal/sweeping.ts checkAllIdle: slot._tag === \"Live\" && slot.leases === 0 → slot._tag === \"Live\" || slot.leases === 0",
      "internal/sweeping.ts checkAllIdle: slot._tag === \"Live\" → true",
      "internal/sweeping.ts checkAllIdle: slot.leases === 0 → true"
    ]
  },
  {
    why:
      "Not equivalent. `test/large.test.ts` measures how long a pass blocks the event loop, but is too slow to run for each mutant.",
    mutants: [
      "internal/sweeping.ts forEachSlot: effect === undefined → false",
      "internal/sweeping.ts forEachSlot: work >= chunk → true",
      "internal/sweeping.ts forEachSlot: work >= chunk → work > chunk",
      "internal/sweeping.ts forEachSlot: work >= chunk → work < chunk",
      "internal/sweeping.ts everyInterval: interval - ((timeOf(self) - startedAt) % interval) → interval + (timeOf(self) - startedAt) % interval"
    ]
  },
  {
    why: "A sleep of infinity never ends, and a sleep of zero does not wait.",
    mutants: [
      "internal/sweeping.ts start: keepAlive !== Infinity → true",
      "internal/sweeping.ts start: leakDetection !== Infinity → true",
      "internal/sweeping.ts end: drainTimeout > 0 → true"
    ]
  },
  {
    why: "It saves time only: what the condition keeps out would find nothing to do, or does the same the longer way.",
    mutants: [
      "SessionPool.ts make: resolved.leakDetection !== Infinity → true",
      "SessionPool.ts callSite: pool.reports.leases !== undefined → true",
      "internal/options.ts resolveUnsafe: capacity !== Infinity || groupCapacity !== Infinity → true",
      "internal/leasing.ts set: Deferred.isDoneUnsafe(launch.done) → false",
      "internal/reports.ts publish: !PubSub.publishUnsafe(events, event) → true",
      "internal/shell.ts timeOf: time < self.latest → time <= self.latest",
      "internal/shell.ts step: waiting !== 0 → true",
      "internal/shell.ts step: actions.length > 0 → true",
      "internal/shell.ts step: actions.length > 0 → actions.length >= 0",
      "internal/shell.ts within: exit !== undefined → false",
      "internal/shell.ts traced: false → true",
      "internal/shell.ts watch: fiber.pollUnsafe() !== undefined → false",
      "internal/shell.ts noteIdleTime: idleTimeToLive >= self.shortestIdle → idleTimeToLive > self.shortestIdle"
    ]
  },
  {
    why: "Never asked: without `validate`, `validateAfter` and `keepAlive` are infinity.",
    mutants: [
      "internal/options.ts resolveUnsafe: () => Effect.succeed(true) → () => undefined",
      "internal/options.ts resolveUnsafe: true → false (2)"
    ]
  },
  {
    why: "Without `validate` every check succeeds at once, so it is not seen.",
    mutants: ["internal/options.ts resolveUnsafe: validate === undefined → false"]
  },
  {
    why: "An action without a tag does nothing.",
    mutants: ["SessionPool.ts make: [] → [\"Stryker was here\"]"]
  },
  {
    why:
      "The compiler needs it: a metric that was read is in its registry, the code runs in a fiber, a failed exit has a cause.",
    mutants: [
      "internal/reports.ts entryOf: `effect-session-pool: the metric ${metric.id} is not in its registry` → ``",
      "internal/reports.ts currentSpan: fiber === undefined → false",
      "internal/shell.ts close: Exit.isFailure(exit) → true"
    ]
  },
  {
    why: "The compiler needs it: leases are traced only if there is a set of them.",
    mutants: [
      "internal/reports.ts reportLeaks: [] → [\"Stryker was here\"]",
      "internal/reports.ts reportLeaks: self.leases?.delete → self.leases.delete",
      "internal/leasing.ts release: trace !== undefined → true",
      "internal/leasing.ts release: pool.reports.leases?.delete → pool.reports.leases.delete"
    ]
  },
  {
    why: "The value makes no difference: `acquire` sets `isBackground`, and what is missing behaves as `undefined`.",
    mutants: [
      "internal/reports.ts logDefect: last !== undefined → true",
      "internal/leasing.ts use: { lease: undefined } → {}",
      "internal/leasing.ts claimWith: false → true"
    ]
  },
  {
    why: "Neither a success nor an error, whatever it is called.",
    mutants: [
      "internal/leasing.ts holdForScope: \"neither\" → \"\"",
      "internal/leasing.ts endUse: \"neither\" → \"\"",
      "internal/leasing.ts endUse: \"neither\" → \"\" (2)",
      "internal/leasing.ts passesCheck: \"neither\" → \"\""
    ]
  }
]

export const survivors: ReadonlyArray<Survivors> = [...transitions, ...shell]
