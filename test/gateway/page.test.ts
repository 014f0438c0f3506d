/** The page, in a real Chromium driven by playwright-core. */
import { mkdirSync } from "node:fs"
import type { Browser, BrowserContextOptions, Page } from "playwright-core"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Chromium from "../kit/browser.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { shortOrLong } from "../kit/long.ts"

const artifacts = new URL("../artifacts/", import.meta.url).pathname
const desktop = { width: 1280, height: 800 }
const phone = { width: 360, height: 740 }

describe("the page", () => {
  let browser: Browser
  let gateway: Kit.Running
  let url: string
  const faults: Array<string> = []
  beforeAll(async () => {
    mkdirSync(artifacts, { recursive: true })
    browser = await Chromium.launch()
    gateway = await Kit.start({ backends: { counter: Kit.counter(), broken: Kit.counter("--fail-start") } })
    url = `${gateway.origin}/mcp/counter`
  })
  afterAll(async () => {
    await browser?.close()
    await gateway?.stop()
  })

  /** Opens the page, and notes whatever goes wrong in it or leaves for elsewhere. */
  const open = async (options: BrowserContextOptions = {}, at = gateway): Promise<Page> => {
    const context = await browser.newContext({ viewport: desktop, ...options })
    const page = await context.newPage()
    page.on("pageerror", (error) => faults.push(String(error)))
    page.on("console", (message) => message.type() === "error" && faults.push(message.text()))
    page.on("request", (request) => {
      if (!request.url().startsWith(at.origin) && !request.url().startsWith("data:")) faults.push(request.url())
    })
    await page.goto(`${at.origin}/`)
    return page
  }

  /** The browser itself reports answers and losses that a test provokes. */
  const expected = (pattern: RegExp) => {
    const others = faults.filter((fault) => !pattern.test(fault))
    faults.splice(0, faults.length, ...others)
  }

  const row = (page: Page, session: string) => page.locator("tbody tr", { hasText: session.slice(0, 8) })
  const close = (page: Page) => page.context().close()

  it("shows what runs; a session is ended with the mouse, and it and its process go", async () => {
    const [session, other] = [await Kit.open(url), await Kit.open(url)]
    const pid = await Kit.pidOf(url, session)
    const page = await open()
    await row(page, session).waitFor()
    assert.match(await page.locator("#counts").innerText(), /2 live sessions on 2 back ends/)
    assert.match(await row(page, session).innerText(), /raw 1\.0\.0\s+idle/)
    await row(page, session).getByRole("button").click()
    await page.getByRole("button", { name: "Keep it" }).click()
    assert.isTrue(Kit.alive(pid))
    await row(page, session).getByRole("button").click()
    await page.getByRole("button", { name: "End the session" }).click()
    await row(page, session).waitFor({ state: "detached" })
    await page.getByText(`Session ${session.slice(0, 8)} has ended.`).waitFor()
    assert.isFalse(Kit.alive(pid))
    assert.strictEqual(await row(page, other).count(), 1)
    await close(page)
  })

  it("can be used with the keyboard alone: Escape keeps a session, Enter ends it, and the focus is always seen", async () => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const page = await open()
    await row(page, session).waitFor()
    const focused = () =>
      page.evaluate(() =>
        document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.textContent ?? ""
      )
    const wanted = `End session ${session.slice(0, 8)} of counter`
    for (let i = 0; i < 20 && (await focused()) !== wanted; i++) await page.keyboard.press("Tab")
    assert.strictEqual(await focused(), wanted)
    const outline = await page.evaluate(() =>
      document.activeElement === null ? "" : getComputedStyle(document.activeElement).outlineStyle
    )
    assert.strictEqual(outline, "solid")
    await page.keyboard.press("Enter")
    await page.locator("dialog[open]").waitFor()
    await page.keyboard.press("Escape")
    await page.locator("dialog[open]").waitFor({ state: "detached" })
    assert.strictEqual(await focused(), wanted)
    assert.isTrue(Kit.alive(pid))
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    assert.strictEqual(await focused(), "End the session")
    await page.keyboard.press("Enter")
    await row(page, session).waitFor({ state: "detached" })
    assert.isFalse(Kit.alive(pid))
    await close(page)
  })

  it("shows a client's name as text, whatever it is", async () => {
    const name = "<img src=x onerror=\"document.title='owned'\">"
    const body = Kit.initializeBody.replace("\"raw\"", JSON.stringify(name))
    const response = await fetch(url, { method: "POST", headers: Kit.headers, body })
    await response.text()
    const session = response.headers.get("mcp-session-id") ?? ""
    const page = await open()
    await row(page, session).getByText(name).waitFor()
    assert.strictEqual(await page.locator("img").count(), 0)
    assert.strictEqual(await page.title(), "Session gateway")
    await close(page)
  })

  describe("for each size and color scheme", () => {
    let page: Page
    let session: string
    beforeAll(async () => {
      await Kit.initialize(`${gateway.origin}/mcp/broken`)
      session = await Kit.open(url)
      await Kit.toolText(url, session, "count")
      page = await open()
    })
    afterAll(() => close(page))

    for (const colorScheme of ["light", "dark"] as const) {
      for (const [width, viewport] of [["desktop", desktop], ["phone", phone]] as const) {
        it(`is readable on a ${width} when ${colorScheme}: nothing to scroll sideways, contrast of 4.5 at least`, async () => {
          await page.setViewportSize(viewport)
          await page.emulateMedia({ colorScheme })
          await row(page, session).waitFor()
          const sideways = await page.evaluate(() =>
            document.documentElement.scrollWidth - document.documentElement.clientWidth
          )
          assert.strictEqual(sideways, 0)
          const display = await row(page, session).evaluate((node) => getComputedStyle(node).display)
          assert.strictEqual(display, width === "desktop" ? "table-row" : "grid")
          const poor = await page.evaluate(contrastFaults)
          assert.deepStrictEqual(poor, [])
          const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor)
          const [red = 0] = ground.match(/\d+/g)?.map(Number) ?? []
          assert.strictEqual(red < 128, colorScheme === "dark")
          if (shortOrLong(false, true)) {
            await page.screenshot({ path: `${artifacts}page-${width}-${colorScheme}.png`, fullPage: true })
          }
        })
      }
    }
  })

  it("asks for the operator's key where there is one, says when it was wrong, and then shows the sessions", async () => {
    const guarded = await Kit.start({
      backends: { counter: Kit.counter() },
      keys: ["client-key"],
      adminKeys: ["operator-key"]
    })
    const page = await open({}, guarded)
    const field = page.getByLabel("Key", { exact: true })
    await field.fill("wrong")
    await page.keyboard.press("Enter")
    await page.getByText("That key was not accepted.").waitFor()
    await field.fill("operator-key")
    await page.keyboard.press("Enter")
    await page.getByText("No session yet").waitFor()
    await close(page)
    expected(/401/)
    await guarded.stop()
  })

  it("says when the gateway is gone, and goes on when it is back", async () => {
    const page = await open()
    // Fakes the page's clock, so the test can skip the wait before the next try.
    await page.clock.install()
    await page.reload()
    await page.locator("#status", { hasText: "live" }).waitFor()
    await page.context().setOffline(true)
    await page.route("**/sessions/events", (route) => route.abort())
    await page.evaluate("leave.abort()")
    await page.getByText("not connected, trying again").waitFor()
    await page.unroute("**/sessions/events")
    await page.context().setOffline(false)
    await page.clock.fastForward("01:00")
    await page.locator("#status", { hasText: "live" }).waitFor()
    await close(page)
    expected(/ERR_INTERNET_DISCONNECTED|ERR_FAILED/)
  })

  it("has asked nothing of any other place and reported no error in all of this", () => {
    assert.deepStrictEqual(faults, [])
  })
})

/** Texts whose contrast with their ground is below 4.5 (WCAG 2.2, 1.4.3); runs in the page. */
const contrastFaults = (): ReadonlyArray<string> => {
  const canvas = document.createElement("canvas").getContext("2d")
  const rgb = (color: string): ReadonlyArray<number> => {
    if (canvas === null) return []
    canvas.clearRect(0, 0, 1, 1)
    canvas.fillStyle = color
    canvas.fillRect(0, 0, 1, 1)
    return [...canvas.getImageData(0, 0, 1, 1).data]
  }
  const luminance = (color: string) => {
    const [r = 0, g = 0, b = 0] = rgb(color).map((value) => value / 255).map((c) =>
      c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
    )
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const ground = (node: Element | null): string => {
    if (node === null) return "white"
    const color = getComputedStyle(node).backgroundColor
    return rgb(color)[3] === 0 ? ground(node.parentElement) : color
  }
  const faults: Array<string> = []
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent?.trim() !== "")
    if (!own || node.closest("[hidden], script, style, dialog:not([open])") !== null) continue
    const [a = 0, b = 0] = [luminance(getComputedStyle(node).color), luminance(ground(node))].toSorted((x, y) => y - x)
    const ratio = (a + 0.05) / (b + 0.05)
    if (ratio < 4.5) faults.push(`${node.tagName} "${node.textContent?.slice(0, 30)}": ${ratio.toFixed(2)}`)
  }
  return faults
}
