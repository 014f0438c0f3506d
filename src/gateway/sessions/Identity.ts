/** The caller of a session or a call, as the sessions and the operators see it. */
import * as Masking from "../settings/Masking.ts"

/** The part of a principal that sessions go by. */
export interface Identity {
  /** Clients with the same id are the same caller. Empty if the gateway cannot tell its callers apart. */
  readonly id: string
  /** The name for operators. */
  readonly name?: string | undefined
}

/** The longest name that is shown, in characters. */
const longest = 64

/** How operators see a caller: by its name, else by the first characters of its id. `undefined` if callers cannot be told apart. */
export const labelOf = ({ id, name }: Identity): string | undefined => {
  if (name) return Masking.printable(name.slice(0, longest))
  return id === "" ? undefined : Masking.printable(id.slice(0, 8))
}

/** The annotation of logs about a caller. Empty if callers cannot be told apart. */
export const annotation = (identity: Identity): { readonly principal?: string } => {
  const principal = labelOf(identity)
  return principal === undefined ? {} : { principal }
}
