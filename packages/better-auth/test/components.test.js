// The components in a real browser, with data of their own.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { accessibilityFindings, bundle, openPage, pageOf, servePages, startBrowser, takeScreenshot } from "tallyman-testing/browser";
import { Page } from "./pages/fixed.js";

const styles = (await Promise.all(["../dist/styles.css", "pages/page.css"].map((path) => readFile(new URL(path, import.meta.url), "utf8")))).join("");
const entry = new URL("pages/gallery.jsx", import.meta.url);

let browser;
let server;
before(async () => {
  browser = await startBrowser();
  const script = await bundle(entry);
  const rendered = `<div id="root">${renderToString(createElement(Page))}</div>`;
  server = await servePages({
    "/": pageOf(script, { styles }),
    "/dark": pageOf(script, { styles, html: 'class="dark"' }),
    "/light": pageOf(script, { styles, html: 'data-theme="light"' }),
    "/rendered": pageOf(await bundle(new URL("pages/hydrate.js", import.meta.url)), { styles, body: rendered }),
    "/react-18": pageOf(await bundle(entry, { react: 18 }), { styles }),
  });
});
after(async () => {
  await browser?.close();
  server?.close();
});

for (const colorScheme of ["light", "dark"]) {
  for (const width of [360, 1280]) {
    test(`every state of every component is accessible and fits, ${colorScheme}, ${width} px`, async () => {
      const page = await openPage(browser, server.url, { viewport: { width, height: 900 }, colorScheme });
      await page.locator("[dir=rtl] .tallyman-chart").first().waitFor();
      assert.deepEqual(await accessibilityFindings(page), []);
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width);
      assert.deepEqual(page.complaints, []);
      for (const section of await page.locator("section").all()) {
        const name = (await section.locator("h2").first().textContent()).toLowerCase();
        await takeScreenshot(section, import.meta.url, `${name}-${colorScheme}-${width}`);
      }
      await page.close();
    });
  }
}

test("the components look and behave the same under React 18", async () => {
  const texts = [];
  for (const path of ["/", "/react-18"]) {
    const page = await openPage(browser, server.url + path);
    await page.locator("[dir=rtl] .tallyman-chart").first().waitFor();
    texts.push(await page.evaluate(() => document.querySelector("main").innerText));
    assert.deepEqual(page.complaints, []);
    await page.close();
  }
  assert.equal(texts[1], texts[0]);
});

test("what a server has rendered is hydrated without a difference in another time zone and locale", async () => {
  const page = await openPage(browser, `${server.url}/rendered`, { timezoneId: "Pacific/Auckland", locale: "de-DE" });
  // Only a browser has a clock for this.
  await page.getByText(/Resets dans [\d\s]+ jours/).waitFor();
  assert.deepEqual(page.complaints, []);
  await page.close();
});

test("a class or data-theme of the page takes precedence over the system's color scheme", async () => {
  const background = async (path, colorScheme) => {
    const page = await openPage(browser, server.url + path, { colorScheme });
    const color = await page.locator(".tallyman-card").first().evaluate((card) => getComputedStyle(card).backgroundColor);
    await page.close();
    return color;
  };
  const light = await background("/", "light");
  const dark = await background("/", "dark");
  assert.notEqual(light, dark);
  assert.equal(await background("/dark", "light"), dark);
  assert.equal(await background("/light", "dark"), light);
});

test("the chart is read with the pointer and with the keyboard", async () => {
  const page = await openPage(browser, server.url);
  const chart = page.locator(".tallyman-plot").first();
  const tip = chart.locator(".tallyman-tip");
  await chart.hover({ position: { x: 10, y: 50 } });
  const oldest = await tip.innerText();
  await takeScreenshot(page.locator(".tallyman-card:has(.tallyman-plot)").first(), import.meta.url, "chart-pointed");
  await page.mouse.move(0, 0);
  assert.equal(await tip.count(), 0);

  await chart.focus();
  assert.match(await chart.getAttribute("aria-valuetext"), /until now: [\d,]+$/);
  const newest = await tip.innerText();
  await page.keyboard.press("ArrowLeft");
  assert.notEqual(await tip.innerText(), newest);
  await takeScreenshot(page.locator(".tallyman-card:has(.tallyman-plot)").first(), import.meta.url, "chart-focused");
  await page.keyboard.press("Home");
  assert.equal(await tip.innerText(), oldest);
  await page.keyboard.press("End");
  assert.equal(await tip.innerText(), newest);
  await page.close();
});

test("the table has what the chart shows, newest first, and is reached with the keyboard", async () => {
  const page = await openPage(browser, server.url);
  const card = page.locator(".tallyman-card:has(.tallyman-plot)").first();
  await card.locator("summary").focus();
  await page.keyboard.press("Enter");
  const rows = await card.locator("tbody tr").all();
  assert.equal(rows.length, 30);
  const values = await Promise.all(rows.map(async (row) => Number((await row.locator("td").innerText()).replaceAll(",", ""))));
  const total = values.reduce((sum, value) => sum + value).toLocaleString("en");
  assert.equal(await card.locator("dd").first().innerText(), total);
  assert.match(await rows[0].innerText(), /until now/);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("role")), "group", "the table scrolls with the keyboard");
  assert.deepEqual(await accessibilityFindings(page), []);
  await takeScreenshot(card, import.meta.url, "chart-table");
  await page.close();
});

test("range and chart type are chosen with buttons that say which is chosen", async () => {
  const page = await openPage(browser, server.url);
  const card = page.locator(".tallyman-card:has(.tallyman-plot)").first();
  await card.getByRole("button", { name: "7 d" }).click();
  assert.equal(await card.locator(".tallyman-column").count(), 7);
  assert.equal(await card.getByRole("button", { name: "7 d" }).getAttribute("aria-pressed"), "true");
  assert.equal(await card.getByRole("button", { name: "30 d" }).getAttribute("aria-pressed"), "false");
  await card.getByRole("button", { name: "Line" }).click();
  assert.equal(await card.locator(".tallyman-column").count(), 0);
  assert.equal(await card.locator(".tallyman-line").count(), 1);
  await card.getByRole("button", { name: "Area" }).click();
  assert.equal(await card.locator(".tallyman-area").count(), 1);
  await page.close();
});

test("bars move only for those who have not asked for less motion", async () => {
  const durationOf = async (reducedMotion) => {
    const page = await openPage(browser, server.url, { reducedMotion });
    const duration = await page.locator(".tallyman-used").first().evaluate((bar) => getComputedStyle(bar).transitionDuration);
    await page.close();
    return duration;
  };
  assert.match(await durationOf("no-preference"), /0\.4s/);
  assert.doesNotMatch(await durationOf("reduce"), /0\.4s/);
});
