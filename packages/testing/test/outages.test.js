// The dashboard in a real browser while Redis or Postgres does not reply.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { kill } from "node:process";
import { after, before, test } from "node:test";
import { accessibilityFindings, openPage, startBrowser, takeScreenshot } from "../browser.js";
import { startTallyman } from "../tallyman.js";

let tallyman, browser;

before(async () => {
  [tallyman, browser] = await Promise.all([startTallyman(), startBrowser()]);
  await tallyman.api("PUT", "/v1/organizations/acme", { metadata: { name: "Acme" }, limits: { api: { limit: 2000 } } });
  await tallyman.api("POST", "/v1/track", { organizationId: "acme", amount: 1234 });
});

after(() => Promise.all([browser?.close(), tallyman?.remove()]));

/** Stops a server of the service with all its processes, or continues it. */
function signal(name, kind) {
  const children = (pid) => readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ").filter(Boolean).map(Number);
  const server = children(tallyman.pid).find((child) => readFileSync(`/proc/${child}/comm`, "utf8").startsWith(name));
  for (const pid of [server, ...children(server)]) kill(pid, kind);
}

/** Polls until the summary has a stored count and says this of the outage. */
async function until(outage, isAway) {
  for (;;) {
    const { body } = await tallyman.api("GET", "/v1/summary");
    if (body.organizations?.total === 1 && body.lastSnapshotAt && (body[outage] !== null) === isAway) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** The overview, with live figures. */
async function signedIn() {
  const page = await openPage(browser, `${tallyman.url}/dashboard`);
  await page.fill("#key", tallyman.key);
  await page.click("text=Sign in >> nth=-1");
  await page.waitForSelector("#live :text-is('Live')");
  return page;
}

test("a page whose stream is refused says that its figures may be old, and tries again", async () => {
  await until("redisAwaySince", false);
  const page = await signedIn();
  await page.clock.install();
  await page.route("**/dashboard/live", (route) => route.fulfill({ status: 503, body: "too many live streams" }), { times: 1 });
  await page.goto(`${tallyman.url}/dashboard`);
  await page.waitForSelector("#live :text-is('Reconnecting; figures may be old')");
  await page.clock.fastForward(15_000);
  await page.waitForSelector("#live :text-is('Live')");
  await page.close();
});

for (const [server, name, outage, effect] of [
  ["Redis", "redis", "redisAwaySince", /refused with 503 until Redis is back/],
  ["Postgres", "postgres", "postgresAwaySince", /are counted and limited as before/],
]) {
  test(`while ${server} does not reply, the pages say so, and are live again afterwards`, async () => {
    await until(outage, false);
    const page = await signedIn();
    signal(name, "SIGSTOP");
    try {
      await page.waitForSelector(`#live :text("${server} cannot be reached")`);
      await until(outage, true);
      await page.goto(`${tallyman.url}/dashboard`);
      const notice = await page.innerText(".note[role=alert]");
      assert.match(notice, new RegExp(`^${server} cannot be reached since \\d\\d:\\d\\d:\\d\\d UTC`));
      assert.match(notice, effect);
      for (const [look, colorScheme, width] of [["light", "light", 1280], ["dark", "dark", 1280], ["narrow", "light", 360]]) {
        await page.emulateMedia({ colorScheme });
        await page.setViewportSize({ width, height: 800 });
        assert.deepEqual(await accessibilityFindings(page), [], look);
        const excess = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(excess <= 0, `${look} is ${excess} px too wide`);
        await takeScreenshot(page, import.meta.url, `outage-${name}-${look}`);
      }
      await page.goto(`${tallyman.url}/dashboard/organizations/acme`);
      assert.match(await page.innerText(".meter .v"), /^1,234\s+of 2,000 units/);
      assert.deepEqual(await accessibilityFindings(page), []);
      await takeScreenshot(page, import.meta.url, `outage-${name}-organization`);
    } finally {
      signal(name, "SIGCONT");
    }
    await until(outage, false);
    await page.goto(`${tallyman.url}/dashboard`);
    await page.waitForSelector("#live :text-is('Live')");
    assert.deepEqual(page.complaints, []);
    await page.close();
  });
}
