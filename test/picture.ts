/** Takes the README's picture of the page, with some sessions at work: `npm run picture`. */
import * as Chromium from "./kit/browser.ts"
import * as Kit from "./kit/gateway/gateway.ts"

const gateway = await Kit.start({ backends: { files: Kit.counter(), search: Kit.counter(), browser: Kit.counter() } })
const urls = ["files", "search", "browser"].map((name) => `${gateway.origin}/mcp/${name}`)
const sessions = await Promise.all(
  [0, 0, 0, 1, 1, 2].map(async (i) => [urls[i] ?? "", await Kit.open(urls[i] ?? "")] as const)
)
// Long enough for some points of the history, which stand ten seconds apart.
for (let second = 0; second < 60; second++) {
  const [url, session] = sessions[second % sessions.length] ?? ["", ""]
  for (let i = 0; i < 1 + (second * 7) % 11; i++) await Kit.toolText(url, session, "count")
  await new Promise((resolve) => setTimeout(resolve, 1000))
}
const browser = await Chromium.launch()
const page = await browser.newPage({ viewport: { width: 1100, height: 760 }, colorScheme: "light" })
await page.goto(`${gateway.origin}/`)
await page.locator("tbody tr").first().waitFor()
await page.screenshot({ path: new URL("page.png", import.meta.url).pathname })
await browser.close()
await gateway.stop()
process.exit(0)
