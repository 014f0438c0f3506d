/**
 * The mutants that no test can kill, because the changed code does the same, each group with the reason. A mutant is
 * named as `npm run mutants` prints it.
 */
export const equivalent: ReadonlyArray<{ readonly why: string; readonly mutants: ReadonlyArray<string> }> = []
