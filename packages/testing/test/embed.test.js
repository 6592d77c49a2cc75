// The card of an embed link in a frame of a page of another origin, in a real browser.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { accessibilityFindings, openPage, servePages, startBrowser, takeScreenshot } from "../browser.js";
import { startTallyman } from "../tallyman.js";

const ORGANIZATION = "/v1/organizations/acme";
const pages = {};
let tallyman, browser, site, allowed;

before(async () => {
  site = await servePages(pages);
  // The same server has two origins, one of which may frame cards.
  allowed = site.url.replace("127.0.0.1", "localhost");
  [tallyman, browser] = await Promise.all([startTallyman({ TALLYMAN_EMBED_ORIGINS: allowed }), startBrowser()]);
  await call("PUT", ORGANIZATION, {
    timeZone: "Europe/Berlin",
    resetMode: "scheduled",
    limits: { api: { limit: 2000 }, exports: { limit: 10, enforcement: "soft" } },
    meters: { api: { label: "API calls", unit: "calls" }, exports: { label: "Exports" } },
  });
  await call("POST", "/v1/track", { organizationId: "acme", meter: "api", amount: 1234 });
  await call("POST", "/v1/track", { organizationId: "acme", meter: "exports", amount: 12 });
});

after(() => Promise.all([browser?.close(), tallyman?.remove(), site?.close()]));

async function call(method, path, body) {
  const { status, body: answer } = await tallyman.api(method, path, body);
  assert.ok(status < 300, JSON.stringify(answer));
  return answer;
}

/** Serves a page that frames the card of a new link; returns the path of the page. */
async function framed(body = {}) {
  const { url } = await call("POST", `${ORGANIZATION}/embed-links`, body);
  return frameOf(url);
}

function frameOf(url) {
  pages["/portal"] = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Portal</title><link rel="icon" href="data:,"><style>:root { color-scheme: light dark } iframe { border: 0; width: 100%; height: 300px }</style></head>
<body><main><h1>Our portal</h1><iframe src="${tallyman.url}${url}" title="Usage"></iframe></main></body></html>`;
  return "/portal";
}

/** The document in the frame. */
async function cardIn(page) {
  const element = await page.waitForSelector("iframe");
  const frame = await element.contentFrame();
  await frame.waitForLoadState();
  return frame;
}

for (const [look, options] of Object.entries({
  light: { colorScheme: "light" },
  dark: { colorScheme: "dark" },
  narrow: { viewport: { width: 360, height: 780 } },
})) {
  test(`a page of an allowed origin shows the card, and the card shows the meter and nothing else: ${look}`, async () => {
    const page = await openPage(browser, allowed + (await framed({ meters: ["api"] })), options);
    const card = await cardIn(page);
    const lines = (await card.innerText("main")).split("\n").map((line) => line.trim());
    const [title, resets, ...meter] = lines.filter(Boolean);
    assert.equal(title, "Your usage");
    assert.match(resets, /^Resets in .+, on 1 \w+ \d{4}, 00:00 Europe\/Berlin$/);
    assert.deepEqual(meter, ["API calls", "Within limit", "1,234 of 2,000 calls", "61.70%"]);
    assert.equal(await card.locator("a, button, input, form, iframe").count(), 0);
    assert.deepEqual(await page.context().cookies(), []);
    const excess = await card.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(excess <= 0, `${excess} px too wide`);
    const shade = await card.evaluate(() => getComputedStyle(document.querySelector("main")).backgroundColor);
    const isLight = Number(/\d+/.exec(shade)[0]) > 127;
    assert.equal(isLight, options.colorScheme !== "dark", shade);
    for (const one of [page, card]) assert.deepEqual(await accessibilityFindings(one), []);
    assert.deepEqual(page.complaints, []);
    await takeScreenshot(page, import.meta.url, `embed-${look}`);
    await page.close();
  });
}

test("a link has its own theme and, unless it names meters, all of them", async () => {
  const page = await openPage(browser, allowed + (await framed({ theme: "dark" })), { colorScheme: "light" });
  const card = await cardIn(page);
  assert.deepEqual(await card.locator("[data-meter]").evaluateAll((all) => all.map((it) => it.dataset.meter)), ["api", "exports"]);
  assert.match(await card.innerText("[data-meter=exports]"), /Over limit[^]*12 of 10[^]*2 more than included, counted as overage/);
  assert.equal(await card.evaluate(() => getComputedStyle(document.documentElement).colorScheme), "dark");
  assert.deepEqual(await accessibilityFindings(card), []);
  await takeScreenshot(page, import.meta.url, "embed-all");
  await page.close();
});

test("a page of another origin does not get the card", async () => {
  const page = await openPage(browser, site.url + (await framed()));
  const card = await cardIn(page);
  assert.equal(await card.locator("main").count(), 0);
  assert.doesNotMatch(await card.content(), /1,234/);
  assert.match(page.complaints.join(), /frame-ancestors/);
  await page.close();
});

test("an expired link, or one of a revoked key, shows a card that says so", async () => {
  const { id, key } = await call("POST", "/v1/api-keys", { name: "portal", scopes: ["read"], organizationId: "acme" });
  const created = await fetch(`${tallyman.url}${ORGANIZATION}/embed-links`, { method: "POST", headers: { authorization: `Bearer ${key}` } });
  const { url } = await created.json();
  await call("DELETE", `/v1/api-keys/${id}`);
  for (const ended of [url, `${url}0`]) {
    const page = await openPage(browser, allowed + frameOf(ended), { viewport: { width: 360, height: 400 } });
    const card = await cardIn(page);
    const lines = (await card.innerText("main")).split("\n").filter((line) => line.trim());
    assert.deepEqual(lines, ["Your usage", "This link has expired. Reload the page to see your usage."]);
    assert.deepEqual(await accessibilityFindings(card), []);
    // Chromium reports the 404, and nothing else is reported.
    assert.equal(page.complaints.filter((it) => !it.includes("404")).length, 0, page.complaints.join());
    await takeScreenshot(page, import.meta.url, "embed-expired");
    await page.close();
  }
});
