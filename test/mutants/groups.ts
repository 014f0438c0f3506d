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
    mutate: internal(
      ...["acquire", "launch", "adopt", "validate", "release", "retire", "end"].map((name) => `transitions/${name}`),
      "draft",
      "queue",
      "candidates"
    ),
    tests: ["transitions", "outcomes", "claims", "collections", "eviction", "walk"].map((name) =>
      `test/internal/${name}`
    )
  },
  {
    name: "shell",
    threshold: 85,
    mutate: [
      "src/SessionPool.ts",
      "src/SessionKey.ts",
      ...internal(
        "pool",
        "leasing",
        "launching",
        "closing",
        "sweeping",
        "adopting",
        "leaks",
        "events",
        "metrics",
        "options",
        "errors"
      )
    ],
    // Left out: what takes seconds a run (large, model, interruption), and what tests the gateway or the package.
    tests: [
      "SessionKey",
      "messages",
      "waiting",
      "resilience",
      "reports",
      "bugs",
      "options",
      "api",
      "invariants",
      "passes"
    ].map((
      name
    ) => `test/${name}`)
  }
]
