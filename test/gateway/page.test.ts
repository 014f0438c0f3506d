/** The page, in a real Chromium driven by playwright-core. */
import type { Page } from "playwright-core"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Chromium from "../kit/browser.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as PrefixProxy from "../kit/gateway/prefixProxy.ts"
import * as Serving from "../kit/gateway/serving.ts"

const desktop = { width: 1280, height: 800 }
const phone = { width: 360, height: 740 }

const browser = await Chromium.launch()
afterAll(() => browser.close())
const backends = { counter: Kit.counter(), broken: Kit.counter("--fail-start") }
const gateway = await Serving.gateway({ backends })
const url = `${gateway.origin}/mcp/counter`

describe("the page", () => {
  const faults: Array<string> = []

  /** Opens the page. Records its errors, and its requests to other origins, in `faults`. */
  const open = async (at = gateway.origin): Promise<Page> => {
    const context = await browser.newContext({ viewport: desktop })
    const page = await context.newPage()
    page.on("pageerror", (error) => faults.push(String(error)))
    page.on("console", (message) => message.type() === "error" && faults.push(message.text()))
    page.on("request", (request) => {
      if (!request.url().startsWith(at) && !request.url().startsWith("data:")) faults.push(request.url())
    })
    await page.goto(`${at}/`)
    return page
  }

  /** Removes the faults that a test causes on purpose. */
  const expected = (pattern: RegExp) => {
    const others = faults.filter((fault) => !pattern.test(fault))
    faults.splice(0, faults.length, ...others)
  }

  const row = (page: Page, session: string) => page.locator("tbody tr", { hasText: session.slice(0, 8) })
  const close = (page: Page) => page.context().close()
  /** Ends a session by its button and the dialog. */
  const end = async (page: Page, session: string) => {
    await row(page, session).getByRole("button").click()
    await page.getByRole("button", { name: "End the session" }).click()
    await page.getByText(`Session ${session.slice(0, 8)} has ended.`).waitFor()
  }

  it("shows the live sessions, and ends one with its process by mouse", async () => {
    const [session, other] = [await Kit.open(url), await Kit.open(url)]
    const pid = await Kit.pidOf(url, session)
    const page = await open()
    await row(page, session).waitFor()
    assert.match(await page.locator("#counts").innerText(), /2 live sessions on 2 back ends/)
    assert.match(await row(page, session).innerText(), /raw 1\.0\.0\s+idle/)
    await row(page, session).getByRole("button").click()
    await page.getByRole("button", { name: "Keep it" }).click()
    assert.isTrue(Kit.alive(pid))
    await end(page, session)
    await row(page, session).waitFor({ state: "detached" })
    assert.isFalse(Kit.alive(pid))
    assert.strictEqual(await row(page, other).count(), 1)
    await close(page)
  })

  it("works by keyboard alone: Escape keeps a session, Enter ends it, and the focus is visible", async () => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const page = await open()
    await row(page, session).waitFor()
    const focused = () =>
      page.evaluate(() => document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.textContent)
    const wanted = `End session ${session.slice(0, 8)} of counter`
    for (let i = 0; i < 20 && (await focused()) !== wanted; i++) await page.keyboard.press("Tab")
    assert.strictEqual(await focused(), wanted)
    const outline = await page.locator(":focus").evaluate((node) => getComputedStyle(node).outlineStyle)
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

  it("shows HTML in a client's name as text", async () => {
    const name = "<img src=x onerror=\"document.title='owned'\">"
    const body = Kit.initializeBody.replace("\"raw\"", JSON.stringify(name))
    const response = await Kit.post(url, "", body)
    await response.text()
    const session = String(response.headers.get("mcp-session-id"))
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
        it(`fits a ${width} without horizontal scrolling when ${colorScheme}, with a contrast of 4.5 or more`, async () => {
          await page.setViewportSize(viewport)
          await page.emulateMedia({ colorScheme })
          await row(page, session).waitFor()
          assert.strictEqual(await page.evaluate(sideways), 0)
          const display = await row(page, session).evaluate((node) => getComputedStyle(node).display)
          assert.strictEqual(display, width === "desktop" ? "table-row" : "flex")
          const poor = await page.evaluate(contrastFaults)
          assert.deepStrictEqual(poor, [])
          const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor)
          const [red = 0] = ground.match(/\d+/g)?.map(Number) ?? []
          assert.strictEqual(red < 128, colorScheme === "dark")
        })
      }
    }
  })

  it("asks for the operator's key, reports a wrong one, and shows the sessions with the right one", async () => {
    const settings = { keys: ["client-key"], adminKeys: ["operator-key"] }
    const guarded = await Serving.gateway({ backends: { counter: Kit.counter() }, ...settings })
    const page = await open(guarded.origin)
    const field = page.getByLabel("Key", { exact: true })
    await field.fill("wrong")
    await page.keyboard.press("Enter")
    await page.getByText("The gateway did not accept that key.").waitFor()
    await field.fill("operator-key")
    await page.keyboard.press("Enter")
    await page.getByText("No session yet").waitFor()
    const command = `claude mcp add --transport http counter ${guarded.origin}/mcp/counter`
    await page.getByText(`${command} --header "Authorization: Bearer $MCP_KEY"`).waitFor()
    await close(page)
    expected(/401/)
  })

  it("works behind a proxy under a path, with and without a slash at its end", async () => {
    const origin = await PrefixProxy.start(gateway.origin, "/tools")
    const session = await Kit.open(`${origin}/tools/mcp/counter`)
    for (const path of ["/tools", "/tools/"]) {
      const page = await open(`${origin}/tools`)
      await page.goto(`${origin}${path}`)
      await row(page, session).waitFor()
      await page.getByText(`${origin}/tools/mcp/counter`, { exact: true }).waitFor()
      if (path === "/tools/") await end(page, session)
      await close(page)
    }
  })

  it("reports a lost connection to the gateway, and reconnects", async () => {
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

  it("shows whether a session is listening, and how many requests it runs", async () => {
    const [listening, calling] = [await Kit.open(url), await Kit.open(url)]
    const stream = await Kit.listen(url, listening)
    const call = Kit.post(url, calling, Kit.toolCall(1, "held"))
    await Kit.eventually("it runs", async () => (await Kit.inFlight(gateway.origin)) === 1)
    const page = await open()
    await row(page, listening).getByText("listening", { exact: true }).waitFor()
    await row(page, calling).getByText("1 request running", { exact: true }).waitFor()
    await close(page)
    await Kit.release(url, calling, 1)
    await call
    await stream.body?.cancel()
  })

  it("has sent no request elsewhere and reported no error in the tests above", () => {
    assert.deepStrictEqual(faults, [])
  })
})

describe("layout of the page", async () => {
  const { origin, url } = await Serving.gateway({ backends: { counter: Kit.counter() } })
  await Kit.open(url)
  await Kit.eventually("there is history", async () => (await Serving.overview(origin)).history.length > 0)
  const real = await Serving.overview(origin)
  const { now } = real
  const backend = (name: string, state: string, sessions = 0) => ({ ...real.backends[0], name, state, sessions })
  const session = (id: number, idleSeconds: number, more: object = {}) => {
    const own = { id, backend: "busy", session: `session${id}`, state: "idle", idleSeconds }
    return { ...real.sessions[0], ...own, ...more }
  }
  const point = (secondsAgo: number, p50Ms: number | null) => {
    const at = now - secondsAgo * 1000
    return { ...real.history[0], at, p50Ms, p95Ms: p50Ms }
  }
  const snapshot = (sessions: ReadonlyArray<object>, history: ReadonlyArray<object> = []) => {
    const failing = { ...backend("broken", "failing"), lastFailure: "exit code 3" }
    const backends = [backend("unused", "not started"), backend("busy", "ok", sessions.length), failing]
    return { ...real, sessions, history, backends }
  }

  const body = await (await fetch(origin)).text()
  const page = await browser.newPage({ viewport: phone })
  // No request of the page reaches the gateway: the page shows only the data of the test.
  await page.route("**/*", (route) => route.fulfill({ contentType: "text/html", body }))
  await page.goto(origin)
  const show = (value: object) => page.evaluate(`show(${JSON.stringify(value)})`)
  const shown = () => page.locator("tbody tr td:first-child").allInnerTexts()

  it("lists failing back ends first, then used ones, and their latest sessions first", async () => {
    await show(snapshot([session(1, 60), session(2, 5), session(3, 0, { inFlight: 2, state: "active" })]))
    assert.deepStrictEqual(await page.locator("h2[id^=backend]").allInnerTexts(), ["broken", "busy", "unused"])
    assert.deepStrictEqual(await shown(), ["session3", "session2", "session1"])
    assert.deepStrictEqual(await page.locator(".badge").allInnerTexts(), ["failing", "ok", "not started"])
  })

  it("moves no row while a row has the focus", async () => {
    await show(snapshot([session(1, 60), session(2, 5)]))
    await page.getByRole("button", { name: "End session session1" }).focus()
    await show(snapshot([session(1, 0), session(2, 5), session(4, 0)]))
    assert.deepStrictEqual(await shown(), ["session2", "session1", "session4"])
    await page.evaluate("document.activeElement.blur()")
    await show(snapshot([session(1, 0), session(2, 5), session(4, 1)]))
    assert.deepStrictEqual(await shown(), ["session1", "session4", "session2"])
  })

  it("fits 24 sessions on three phone screens, and shows the rest when asked", async () => {
    await show(snapshot(Array.from({ length: 24 }, (_, i) => session(i, i))))
    assert.lengthOf(await shown(), 8)
    const height = () => page.evaluate(() => document.documentElement.scrollHeight)
    assert.isAtMost(await height(), 3 * phone.height)
    await page.getByRole("button", { name: "Show all 24 sessions" }).click()
    assert.lengthOf(await shown(), 24)
    assert.isAtMost(await height(), 5 * phone.height)
    await page.getByRole("button", { name: "Show 8 sessions only" }).click()
    assert.lengthOf(await shown(), 8)
  })

  it("shows the caller of each session once one is known, also on a phone, and wraps a long name", async () => {
    const busy = page.locator("section", { hasText: "Sessions of busy" })
    await show(snapshot([session(1, 60)]))
    assert.isTrue(await busy.locator("th:nth-child(3)").evaluate(isHidden))
    const callers = [{ principal: "Ada <b>" }, { principal: "a".repeat(64) }, {}]
    await show(snapshot(callers.map((caller, i) => session(i, i, caller))))
    const cells = busy.locator("tbody td:nth-child(3)")
    assert.deepStrictEqual(await cells.allInnerTexts(), ["Ada <b>", "a".repeat(64), ""])
    const labels = await cells.evaluateAll((nodes) => nodes.map((node) => getComputedStyle(node, "::before").content))
    assert.deepStrictEqual(labels.map((label) => label.includes("Caller")), [true, true, false])
    for (const size of [phone, desktop]) {
      await page.setViewportSize(size)
      assert.isFalse(await busy.locator("td:nth-child(3)").first().evaluate(isHidden))
      assert.strictEqual(await page.evaluate(sideways), 0)
    }
    await page.setViewportSize(phone)
  })

  it("draws charts with a time axis, a highest value, and gaps without measurements", async () => {
    await show(snapshot([], [point(40, 30), point(30, 20), point(20, null), point(10, 45), point(0, 45)]))
    const chart = page.locator("figure", { hasText: "Latency" })
    assert.deepStrictEqual(await chart.locator(".scale").allInnerTexts(), ["60 ms", "5 min ago\nnow"])
    // 40 seconds of five minutes, up to now.
    assert.strictEqual(
      await chart.locator("path").first().getAttribute("d"),
      "M86.67 15.00h0L90.00 20.00M96.67 7.50h0L100.00 7.50"
    )
    await show(snapshot([], [point(1200, 30), point(0, 45)]))
    assert.deepStrictEqual(await chart.locator(".scale").last().innerText(), "60 min ago\nnow")
    assert.strictEqual(await page.locator("#hour-title").innerText(), "The last hour")
  })
})

/** How far the page scrolls sideways. Runs in the page. */
const sideways = () => document.documentElement.scrollWidth - document.documentElement.clientWidth

const isHidden = (node: Element): boolean => getComputedStyle(node).display === "none"

/** Texts whose contrast with their ground is below 4.5 (WCAG 2.2, 1.4.3). Runs in the page. */
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
