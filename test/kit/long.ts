/** Picks the size of a test: short in `npm test`, long in `npm run test:long`. */
export const shortOrLong = <A>(short: A, long: A): A => process.env["LONG"] === "1" ? long : short
