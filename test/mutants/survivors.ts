/**
 * The mutants that live, each group with the reason. A mutant is named as `npm run mutants` prints it: file, declaration, what became
 * what; a number tells apart those that read the same.
 */
interface Survivors {
  readonly why: string
  readonly mutants: ReadonlyArray<string>
}

const transitions: ReadonlyArray<Survivors> = [
  {
    why: "It saves time only: what the condition keeps out would find nothing to do, or does the same the longer way.",
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
      "A step frees one place, adds one waiter or makes one session idle, so it evicts once, and nothing is left to do after it.",
    mutants: [
      "internal/places.ts serve: Ordered.get(d.state.waiting, id) === undefined → false",
      "internal/places.ts serve: !evictFor(d, waiter, undefined) → evictFor(d, waiter, undefined)",
      "internal/places.ts evictFor: false → true",
      "internal/places.ts evictFor: true → false (2)"
    ]
  },
  {
    why:
      "The compiler needs the check: a launch that waits has a Waiting slot, an idle session a Live one, a retired session no `done`.",
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
    why: "Neither a success nor an error, whatever it is called.",
    mutants: ["internal/transitions.ts abandon: \"neither\" → \"\""]
  }
]

const shell: ReadonlyArray<Survivors> = [
  {
    why: "Only finds candidates: the step that follows looks again.",
    mutants: [
      "internal/sweeping.ts checkAllIdle: slot._tag === \"Live\" && slot.leases === 0 → true",
      "internal/sweeping.ts checkAllIdle: slot._tag === \"Live\" && slot.leases === 0 → slot._tag === \"Live\" || slot.leases === 0",
      "internal/sweeping.ts checkAllIdle: slot._tag === \"Live\" → true",
      "internal/sweeping.ts checkAllIdle: slot.leases === 0 → true"
    ]
  },
  {
    why:
      "Not equivalent: test/large.test.ts, which is left out because of its time, measures how long a pass blocks the event loop.",
    mutants: [
      "internal/sweeping.ts forEachSlot: work += effect === undefined ? 1 : stepCost → work -= effect === undefined ? 1 : stepCost",
      "internal/sweeping.ts forEachSlot: effect === undefined → true",
      "internal/sweeping.ts forEachSlot: effect === undefined → effect !== undefined",
      "internal/sweeping.ts forEachSlot: work >= chunk → true",
      "internal/sweeping.ts forEachSlot: work >= chunk → false",
      "internal/sweeping.ts forEachSlot: work >= chunk → work > chunk",
      "internal/sweeping.ts forEachSlot: work >= chunk → work < chunk",
      "internal/sweeping.ts forEachSlot: { yield* Effect.yieldNow work = 0 now = timeOf(self) } → {}",
      "internal/sweeping.ts everyInterval: interval - ((timeOf(self) - startedAt) % interval) → interval + (timeOf(self) - startedAt) % interval"
    ]
  },
  {
    why: "A sleep of infinity never ends, and one of zero waits for nothing.",
    mutants: [
      "internal/sweeping.ts start: keepAlive !== Infinity → true",
      "internal/sweeping.ts start: leakDetection !== Infinity → true",
      "internal/sweeping.ts end: drainTimeout > 0 → true",
      "internal/sweeping.ts end: drainTimeout > 0 → drainTimeout >= 0",
      "internal/sweeping.ts end: drainTimeout === Infinity → false"
    ]
  }
]

export const survivors: ReadonlyArray<Survivors> = [...transitions, ...shell]
