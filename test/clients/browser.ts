/** Stands for a user's browser: `BROWSER` is this, and a client starts it with an address. It logs in, and returns to the client. */
import { browse } from "../kit/gateway/oidcProvider.ts"

await fetch(await browse(new URL(process.argv[2] ?? "")))
