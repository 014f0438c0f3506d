/** The cases that the flags `--only NAME` name; all cases without the flag. */
export const chosen = <C extends { readonly name: string }>(
  cases: ReadonlyArray<C>,
  only: ReadonlyArray<string>
): ReadonlyArray<C> => {
  const names = [...new Set(cases.map(({ name }) => name))]
  const unknown = only.find((name) => !names.includes(name))
  if (unknown !== undefined) throw new Error(`no case "${unknown}"; there are: "${names.join("\", \"")}"`)
  return only.length === 0 ? cases : cases.filter(({ name }) => only.includes(name))
}
