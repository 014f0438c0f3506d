interface Survivors {
  readonly why: string
  readonly mutants: ReadonlyArray<string>
}
export const survivors: ReadonlyArray<Survivors> = []
