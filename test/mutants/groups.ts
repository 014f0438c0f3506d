/** The groups of mutants: the files to mutate, the tests that must fail, and the least score. */
export interface Group {
  readonly name: string
  /** Percent of the mutants that the tests must kill. Survivors that are listed with a reason count as not killed. */
  readonly threshold: number
  readonly mutate: ReadonlyArray<string>
  /** In the order of the run. The first failure ends the run of a mutant, so fast tests come first. */
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
    // Left out: tests that take seconds (large, model, interruption), and tests of the gateway or the package.
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
