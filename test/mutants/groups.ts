/** What is mutated, which tests must notice, and how many of the mutants they must kill. */
export interface Group {
  readonly name: string
  /** Percent of the mutants that the tests must kill; the equivalent ones count against it too. */
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
    mutate: internal("transitions", "draft", "queue", "candidates"),
    tests: ["test/internal/transitions", "test/internal/collections", "test/internal"]
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
    tests: ["test/SessionKey", "test/bugs", "test/options", "test/api", "test/invariants"]
  }
]
