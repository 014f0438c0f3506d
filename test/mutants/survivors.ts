/**
 * The mutants that live, each group with the reason. A mutant is named as `npm run mutants` prints it: file,
 * declaration, what became what; a number tells apart those that read the same.
 */
interface Survivors {
  readonly why: string
  readonly mutants: ReadonlyArray<string>
}

const transitions: ReadonlyArray<Survivors> = [
  {
    why: "Nothing to do in any case: what the condition keeps out would change nothing; it saves the time.",
    mutants: [
      "internal/draft.ts leastRecentlyUsed: [] → [\"Stryker was here\"] (4)",
      "internal/queue.ts entries: ticket < self.next → ticket <= self.next",
      "internal/draft.ts serve: Queue.size(d.inventory.queue) === 0 → false",
      "internal/draft.ts forgetIdle: true → false",
      "internal/draft.ts serve: !groupFree → true",
      "internal/transitions/release.ts release: leases > 0 → false"
    ]
  },
  {
    why:
      "The short way of a release that changes nothing else, or one copy of the inventory: the long way does the same.",
    mutants: [
      "internal/transitions/release.ts release: session.idleTimeToLive > 0 && idleChangesNothing(state.inventory, lim… → false",
      "internal/draft.ts Draft: this.copy === undefined → true",
      "internal/draft.ts idleChangesNothing: { if (Queue.size(queue) > 0) return false if (limits.capacity !== Inf… → {}",
      "internal/draft.ts idleChangesNothing: Queue.size(queue) > 0 → true",
      "internal/draft.ts idleChangesNothing: limits.capacity !== Infinity && !Candidates.has(places.idle, key, has… → true",
      "internal/draft.ts idleChangesNothing: limits.capacity !== Infinity && !Candidates.has(places.idle, key, has… → limits.capacity !== Infinity || !Candidates.has(places.idle, key, has…",
      "internal/draft.ts idleChangesNothing: limits.capacity !== Infinity → true",
      "internal/draft.ts idleChangesNothing: limits.groupCapacity === Infinity → false",
      "internal/draft.ts idleChangesNothing: true → false",
      "internal/draft.ts idleChangesNothing: Option.isSome(ofGroup) && Candidates.has(ofGroup.value.idle, key, has… → false",
      "internal/transitions/release.ts release: leases > 0 || (session.idleTimeToLive > 0 && idleChangesNothing(state… → false",
      "internal/transitions/release.ts release: leases > 0 || (session.idleTimeToLive > 0 && idleChangesNothing(state… → leases > 0 && session.idleTimeToLive > 0 && idleChangesNothing(state.…",
      "internal/transitions/release.ts release: how !== \"error\" && staysAsIs → false",
      "internal/transitions/release.ts release: { // Nothing follows from the end of this lease. const slots = withSl… → {}"
    ]
  },
  {
    why: "A guard: whoever waits, and counts on no close, has had every candidate that is in use dropped.",
    mutants: [
      "internal/draft.ts idleChangesNothing: Queue.size(queue) > 0 → false",
      "internal/draft.ts idleChangesNothing: Queue.size(queue) > 0 → Queue.size(queue) >= 0",
      "internal/draft.ts idleChangesNothing: Queue.size(queue) > 0 → Queue.size(queue) <= 0"
    ]
  },
  {
    why: "A step adds one waiter or makes one session idle, so it evicts at most once, and does nothing after it.",
    mutants: [
      "internal/draft.ts serve: !evict(d, undefined) → evict(d, undefined)",
      "internal/draft.ts evict: false → true",
      "internal/draft.ts evict: true → false"
    ]
  },
  {
    why: "Cannot be otherwise: a ticket in the queue has a waiting slot, and a candidate for eviction is live.",
    mutants: [
      "internal/draft.ts grant: slot?._tag !== \"Waiting\" → false",
      "internal/draft.ts grant: slot?._tag → slot._tag",
      "internal/draft.ts grant: { throw new Error(`effect-session-pool: the queue holds a waiter with… → {}",
      "internal/draft.ts grant: `effect-session-pool: the queue holds a waiter without a slot (ticket… → ``"
    ]
  },
  {
    why:
      "What is remembered of a comparison only saves the next one: without it, or with an entry twice, the same is found.",
    mutants: [
      "internal/draft.ts becomeIdleAfterValidation: true → false",
      "internal/draft.ts becomeIdleAfterValidation: foundByUse(found, last) > 0 → foundByUse(found, last) >= 0",
      "internal/draft.ts becomeIdleAfterValidation: [...places.oldest.filter((other) => other.id !== id), found] → []",
      "internal/draft.ts leastRecentlyUsed: { const slot = idleAt(d, found.key) if (slot?.session.id === found.id… → {}",
      "internal/draft.ts leastRecentlyUsed: slot?.session.id === found.id && slot.lastUsedAt === found.lastUsedAt → false",
      "internal/draft.ts leastRecentlyUsed: { keep(places.idle, places.oldest.slice(i)) return slot } → {}",
      "internal/draft.ts leastRecentlyUsed: places.oldest.slice(i) → places.oldest",
      "internal/draft.ts leastRecentlyUsed: all.at(-1)?.lastUsedAt ?? 0 → all.at(-1)?.lastUsedAt && 0",
      "internal/draft.ts leastRecentlyUsed: -1 → +1",
      "internal/draft.ts leastRecentlyUsed: ({ lastUsedAt }) => lastUsedAt < newest → () => undefined",
      "internal/draft.ts leastRecentlyUsed: lastUsedAt < newest → false"
    ]
  },
  {
    why: "Another sample of the same kind: one more or one less, or another generator.",
    mutants: [
      "internal/draft.ts leastRecentlyUsed: sample.length < sampleSize → sample.length <= sampleSize",
      "internal/draft.ts leastRecentlyUsed: Candidates.size(idle) > exactEvictionLimit → Candidates.size(idle) >= exactEvictionLimit",
      "internal/draft.ts leastRecentlyUsed: Math.imul(d.inventory.seed, 1664525) + 1013904223 → Math.imul(d.inventory.seed, 1664525) - 1013904223"
    ]
  },
  {
    why: "A candidate that is in use is dropped when it is drawn.",
    mutants: ["internal/transitions/adopt.ts adopt: callers === 0 → true"]
  },
  {
    why: "What is neither a success nor an error, whatever it is called.",
    mutants: [
      "internal/leasing.ts leaseForScope: \"neither\" → \"\" (2)",
      "internal/leasing.ts startValidation: \"neither\" → \"\"",
      "internal/transitions/acquire.ts abandon: \"neither\" → \"\"",
      "internal/transitions/validate.ts validated: \"neither\" → \"\"",
      "internal/leasing.ts leaseForScope: \"neither\" → \"\"",
      "internal/leasing.ts judge: \"neither\" → \"\"",
      "internal/leasing.ts judge: \"neither\" → \"\" (2)",
      "internal/leasing.ts awaitValidation: \"neither\" → \"\""
    ]
  },
  {
    why: "The compiler needs the check: `Failure` is the reason of a `Failed` slot, and of no other.",
    mutants: [
      "internal/transitions/retire.ts expiry: \"Failure\" → \"\"",
      "internal/transitions/retire.ts expire: slot === undefined → false (2)",
      "internal/transitions/retire.ts expire: slot._tag === \"Live\" && reason !== \"Failure\" → slot._tag === \"Live\" || reason !== \"Failure\"",
      "internal/transitions/retire.ts expire: slot._tag === \"Live\" → true",
      "internal/transitions/retire.ts expire: reason !== \"Failure\" → true",
      "internal/transitions/retire.ts expire: \"Failure\" → \"\""
    ]
  }
]

const shell: ReadonlyArray<Survivors> = [
  {
    why:
      "Nothing to do in any case: what has ended is interrupted, awaited or looked for again; nobody is there any more.",
    mutants: [
      "internal/leasing.ts startValidation: end === undefined → true",
      "internal/pool.ts perform: actions.length === 0 → false",
      "internal/sweeping.ts invalidateAll: was === undefined → true",
      "SessionPool.ts make: [] → [\"Stryker was here\"]",
      "internal/closing.ts within: lingersAt < closeTimeout → true",
      "internal/closing.ts within: lingersAt < closeTimeout → lingersAt <= closeTimeout",
      "internal/closing.ts within: Exit.isFailure(exit) → true",
      "internal/launching.ts watch: fiber.pollUnsafe() !== undefined → false",
      "internal/launching.ts watch: fiber.pollUnsafe() === undefined → true"
    ]
  },
  {
    why:
      "Another number, or another way to the same: how long or how many, a scheduler more, a cache less, one scope after the other.",
    mutants: [
      "internal/leasing.ts claim: \"Join\" → \"\"",
      "internal/pool.ts carryOut: -self.due.length → +self.due.length",
      "internal/pool.ts givingWay: Context.get(self.context, Scheduler.Scheduler).executionMode === \"asy… → false",
      "internal/pool.ts givingWay: \"async\" → \"\"",
      "SessionPool.ts make: \"parallel\" → \"\"",
      "internal/launching.ts watch: self.options.closeTimeout / 2 → self.options.closeTimeout * 2",
      "internal/metrics.ts make: retiredFor.set(reason, counter) → ;"
    ]
  },
  {
    why: "Without a limit: a sleep of infinity never ends either, and zero waits for nothing; it saves the timer.",
    mutants: [
      "internal/pool.ts raceTimer: millis === Infinity → false",
      "internal/closing.ts lingersAfter: capacity === Infinity && groupCapacity === Infinity → false",
      "internal/leasing.ts awaitPlace: acquireTimeout !== Infinity → true",
      "internal/launching.ts awaitEnd: lookupTimeout !== Infinity → true",
      "internal/launching.ts runLaunch: self.options.maxLifetime === Infinity → false",
      "internal/sweeping.ts everyInterval: interval === Infinity → false",
      "internal/sweeping.ts end: self.options.drainTimeout > 0 → true",
      "internal/sweeping.ts end: self.options.drainTimeout > 0 → self.options.drainTimeout >= 0",
      "internal/sweeping.ts end: self.options.drainTimeout === Infinity → false",
      "internal/adopting.ts awaitGrant: acquireTimeout === Infinity → false"
    ]
  },
  {
    why: "What is switched off does nothing either way; it saves a fiber, or the memory of the traces.",
    mutants: [
      "internal/leaks.ts callSite: leaks === undefined → false",
      "internal/pool.ts traced: false → true (2)",
      "SessionPool.ts make: resolved.leakDetection === Infinity → false",
      "SessionPool.ts make: resolved.keepAlive !== Infinity → true",
      "SessionPool.ts make: pool.leaks !== undefined → true",
      "internal/leasing.ts release: trace !== undefined → true",
      "internal/leasing.ts release: self.leaks?.delete → self.leaks.delete",
      "internal/options.ts resolveUnsafe: validate === undefined → false",
      "internal/leasing.ts startValidation: validate === undefined → false",
      "internal/leasing.ts startValidation: true → false"
    ]
  },
  {
    why: "Only finds candidates: the step that follows decides, and finds the same.",
    mutants: [
      "internal/sweeping.ts keepAlive: slot._tag === \"Live\" && slot.leases === 0 → true",
      "internal/sweeping.ts keepAlive: slot._tag === \"Live\" && slot.leases === 0 → slot._tag === \"Live\" || slot.leases === 0",
      "internal/sweeping.ts keepAlive: slot._tag === \"Live\" → true",
      "internal/sweeping.ts keepAlive: slot.leases === 0 → true",
      "internal/sweeping.ts keepAlive: [] → [\"Stryker was here\"]",
      "internal/leasing.ts awaitPlace: value._tag === \"Some\" → false",
      "internal/leasing.ts awaitPlace: \"Some\" → \"\""
    ]
  },
  {
    why: "The compiler needs the check, or the value cannot be another.",
    mutants: [
      "internal/launching.ts runLaunch: end !== \"TimedOut\" → true",
      "internal/launching.ts runLaunch: \"TimedOut\" → \"\"",
      "internal/leasing.ts settle: case \"Absent\": return undefined → case \"Absent\":",
      "internal/leasing.ts settle: \"Absent\" → \"\"",
      "internal/leaks.ts site: \"unknown\" → \"\""
    ]
  },
  {
    why: "The short way of a hit, of a launch that ends at once, of a metric: the long way does the same.",
    mutants: [
      "internal/leasing.ts use: { lease: undefined, trace: undefined } → {}",
      "internal/leasing.ts use: session !== undefined && self.leaks === undefined → false",
      "internal/leasing.ts claim: acquired._tag === \"Join\" && attempt === 1 && Deferred.isDoneUnsafe(ac… → false",
      "internal/metrics.ts make: known !== undefined → false"
    ]
  },
  {
    why: "A span, or its stack, that nobody sees.",
    mutants: [
      "internal/pool.ts traced: self.tracer === Tracer.nativeTracer → false"
    ]
  },
  {
    why: "Counts the same, or gives back the same, in another way.",
    mutants: [
      "internal/sweeping.ts keepAlive: true → false",
      "internal/pool.ts publish: !PubSub.publishUnsafe(self.events, event) → true"
    ]
  },
  {
    why: "Not equivalent: test/large.test.ts, which is left out because of its time, fails without it.",
    mutants: ["internal/pool.ts publish: fork(self, PubSub.publish(self.events, event)) → ;"]
  },
  {
    why: "No promise: the seed of the eviction samples.",
    mutants: [
      "SessionPool.ts make: (yield* Random.next) * 4294967296 → (yield* Random.next) / 4294967296"
    ]
  },
  {
    why: "A guard for what nothing does today: no pass can die, as a `validate` that dies is taken for a no.",
    mutants: [
      "internal/sweeping.ts everyInterval: \"A cleanup pass of the session pool died\" → \"\"",
      "internal/sweeping.ts everyInterval: (cause) => Effect.logError(\"A cleanup pass of the session pool died\",… → () => undefined"
    ]
  },
  {
    why: "Not equivalent: it takes a race of two steps that these tests do not time. The explored schedules find it.",
    mutants: ["internal/launching.ts runLaunch: session === undefined → false"]
  },
  {
    why:
      "Not equivalent: it takes a race of two steps that no test times, and changes an event, a count that is returned or the error of a caller.",
    mutants: [
      "internal/leasing.ts claimSlowly: attempt === 1 → true"
    ]
  }
]

export const survivors: ReadonlyArray<Survivors> = [...transitions, ...shell]
