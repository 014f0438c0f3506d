/** What is mutated, which tests must notice, and how many of the mutants they must kill. */
export interface Group {
  readonly name: string
  /** Percent of the mutants that the tests must kill; the survivors listed with a reason count against it. */
  readonly threshold: number
  readonly mutate: ReadonlyArray<string>
  /** In the order in which they run: the first failure ends the run of a mutant, so the fast ones come first. */
  readonly tests: ReadonlyArray<string>
}

const internal = (...names: ReadonlyArray<string>) => names.map((name) => `src/internal/${name}.ts`)

export const groups: ReadonlyArray<Group> = [
  {
    name: "transitions",
    threshold: 95,
    mutate: internal("ordered", "state", "places", "transitions"),
    tests: ["ordered", "places", "transitions", "walk"].map((name) => `test/internal/${name}`)
  },
  {
    name: "shell",
    threshold: 90,
    mutate: [
      "src/SessionPool.ts",
      "src/SessionKey.ts",
      ...internal("shell", "leasing", "sweeping", "reports", "options", "errors", "keys")
    ],
    // Left out: what takes seconds a run (large, model, interruption), and what tests the gateway or the package.
    tests: [
      "SessionKey",
      "keys",
      "errors",
      "options",
      "service",
      "set",
      "leasing",
      "validation",
      "launching",
      "failures",
      "capacity",
      "eviction",
      "waiting",
      "expiry",
      "closing",
      "events",
      "reports",
      "invariants"
    ].map((name) => `test/${name}`)
  }
]
