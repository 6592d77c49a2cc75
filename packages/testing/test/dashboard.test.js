// The dashboard in a real browser: with and without JavaScript, by keyboard alone, narrow and dark.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { accessibilityFindings, openPage, startBrowser, takeScreenshot } from "../browser.js";
import { EXECUTABLE, startTallyman } from "../tallyman.js";

const LOOKS = {
  light: { colorScheme: "light" },
  dark: { colorScheme: "dark" },
  narrow: { viewport: { width: 360, height: 780 } },
};

let tallyman, browser;

before(async () => {
  [tallyman, browser] = await Promise.all([startTallyman(), startBrowser()]);
  await promisify(execFile)(EXECUTABLE, ["demo", "--data-dir", tallyman.directory]);
});

after(() => Promise.all([browser?.close(), tallyman?.remove()]));

/** A page of a viewer who has signed in. Requests that leave this machine fail the test. */
async function signedIn(options = {}, key = tallyman.key) {
  const page = await openPage(browser, `${tallyman.url}/dashboard`, options);
  page.on("request", (request) => {
    const { hostname } = new URL(request.url());
    if (hostname !== "127.0.0.1") page.complaints.push(`a request to ${hostname}`);
  });
  await page.fill("#key", key);
  await page.click("text=Sign in >> nth=-1");
  await page.waitForURL(`${tallyman.url}/dashboard`);
  return page;
}

const api = async (method, path, body) => {
  const response = await fetch(`${tallyman.url}${path}`, {
    method,
    headers: { authorization: `Bearer ${tallyman.key}`, "content-type": "application/json" },
    body: body && JSON.stringify(body),
  });
  assert.ok(response.ok, await response.clone().text());
  return response.json();
};

test("a wrong key is refused, and the right one leads to the page that was asked for", async () => {
  const page = await openPage(browser, `${tallyman.url}/dashboard?state=exceeded`);
  await page.fill("#key", "tm_wrong");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".problem");
  assert.match(await page.textContent(".problem"), /not accepted/);
  assert.deepEqual(await accessibilityFindings(page), []);
  await takeScreenshot(page, import.meta.url, "sign-in-refused");
  await page.fill("#key", tallyman.key);
  await page.keyboard.press("Enter");
  await page.waitForURL(`${tallyman.url}/dashboard?state=exceeded`);
  await page.close();
});

test("who is about to hit the limit is the first list, and the limit is raised for a week from its row", async () => {
  const page = await signedIn();
  const row = page.locator(".risk li").first();
  assert.match(await row.innerText(), /(Full|Over its soft limit) in about/);
  await row.getByRole("link", { name: /Raise limit/ }).click();
  await page.waitForSelector("details[open] form");
  const organization = new URL(page.url()).pathname.split("/").at(-1);
  const form = page.locator("details[open] form").first();
  await form.locator("input[name=limit]").fill("900,000,000");
  await form.getByRole("button", { name: "Save limit" }).click();
  await page.waitForSelector(".note.ok");
  assert.match(await page.textContent(".note.ok"), /900,000,000 until/);
  const { limits } = await api("GET", `/v1/organizations/${organization}/limits`);
  assert.ok(Object.values(limits).some(({ limit, source }) => limit === 900_000_000 && source === "temporary"));
  await page.reload();
  assert.equal(await page.locator(".note.ok").count(), 0);
  assert.deepEqual(page.complaints, []);
  await page.close();
});

test("the search offers organizations as one types, and the keyboard opens one", async () => {
  const page = await signedIn();
  await page.keyboard.press("Control+k");
  await page.keyboard.type("legal");
  await page.waitForSelector("#hits li[role=option]");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await page.waitForURL(/organizations\/[a-z]+-legal$/);
  assert.match(await page.textContent("h1"), /Legal/);
  await page.close();
});

test("figures are live without a reload", async () => {
  const page = await signedIn();
  await page.goto(`${tallyman.url}/dashboard/organizations/harbor-foods`);
  const figure = page.locator('[data-live="api.current"]');
  const before = Number((await figure.textContent()).replaceAll(",", ""));
  await api("POST", "/v1/track", { organizationId: "harbor-foods", amount: 17 });
  await page.waitForFunction(
    (expected) => document.querySelector('[data-live="api.current"]').textContent.replaceAll(",", "") === String(expected),
    before + 17,
  );
  assert.match(await page.textContent("#live"), /Live/);
  assert.deepEqual(page.complaints, []);
  await page.close();
});

test("range, measure and type are links, and the chart is read by keyboard", async () => {
  const page = await signedIn();
  await page.goto(`${tallyman.url}/dashboard/organizations/harbor-foods`);
  for (const name of ["90 d", "Running total", "Area", "1 y", "24 h"]) {
    await page.getByRole("link", { name, exact: true }).click();
    await page.waitForSelector(`.seg a[aria-current]:text-is("${name}")`);
  }
  const plot = page.getByRole("slider");
  await plot.focus();
  const newest = await plot.getAttribute("aria-valuetext");
  await page.keyboard.press("Home");
  const oldest = await plot.getAttribute("aria-valuetext");
  assert.match(oldest, /Used: /);
  assert.notEqual(newest, oldest);
  await page.click("text=Show these figures as a table");
  assert.ok((await page.locator(".data tbody tr").count()) >= 24);
  await page.close();
});

test("two administrators do not overwrite each other", async () => {
  const [one, other] = [await signedIn(), await signedIn()];
  const path = `${tallyman.url}/dashboard/organizations/granite-biotech?edit=api`;
  await Promise.all([one.goto(path), other.goto(path)]);
  const save = async (page, limit) => {
    const form = page.locator("details[open] form").first();
    await form.locator("input[value=lasting]").check();
    await form.locator("input[name=limit]").fill(limit);
    await form.getByRole("button", { name: "Save limit" }).click();
  };
  await save(one, "2000000");
  await one.waitForSelector(".note.ok");
  await save(other, "3000000");
  await other.waitForSelector(".problem");
  assert.match(await other.textContent(".problem"), /changed this organization while you were editing/);
  assert.match(await other.locator("tr", { hasText: "Limit of api" }).innerText(), /3,000,000\s.*2,000,000/s);
  assert.deepEqual(await accessibilityFindings(other), []);
  await takeScreenshot(other, import.meta.url, "conflict");
  const limit = async () => (await api("GET", "/v1/organizations/granite-biotech/limits")).limits.api.limit;
  assert.equal(await limit(), 2_000_000);
  await other.getByRole("button", { name: "Save what I entered" }).click();
  await other.waitForSelector(".note.ok");
  assert.equal(await limit(), 3_000_000);
  await Promise.all([one.close(), other.close()]);
});

test("without JavaScript everything but live figures works", async () => {
  // Its period may just have begun.
  await api("POST", "/v1/track", { organizationId: "harbor-foods", amount: 5 });
  const page = await signedIn({ javaScriptEnabled: false });
  await page.fill("#q", "harbor foods");
  await page.click("text=Search");
  await page.click("table.orgs tbody a >> nth=0");
  await page.click("text=Adjust count >> nth=0");
  const before = await api("GET", "/v1/organizations/harbor-foods/usage");
  // The fullest meter comes first.
  await page.selectOption("#adjust [name=meter]", "api");
  await page.fill("[name=amount]", "5");
  await page.fill("#adjust [name=reason]", "calls that failed");
  await page.click("#adjust button");
  assert.match(await page.textContent(".note.ok"), /The count of api is now/);
  const afterwards = await api("GET", "/v1/organizations/harbor-foods/usage");
  assert.equal(afterwards.meters.api.current, before.meters.api.current - 5);
  await page.click("text=See what happens");
  await page.fill("[name=reason]", "moved to a yearly contract");
  await page.click("button.danger");
  assert.match(await page.textContent(".note.ok"), /starts again at 0/);
  await page.close();
});

test("a refused form keeps what was entered, and its error summary leads to the field", async () => {
  for (const [look, options] of Object.entries(LOOKS)) {
    const page = await signedIn(options);
    const refused = async (name, id) => {
      await page.waitForSelector(".problem");
      assert.ok(await page.evaluate(() => document.activeElement.matches(".problem")), `${name}: the summary has no focus`);
      assert.deepEqual(await accessibilityFindings(page), [], `${name}, ${look}`);
      const excess = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(excess <= 0, `${name}, ${look} is ${excess} px too wide`);
      await takeScreenshot(page, import.meta.url, `${name}-${look}`);
      await page.click(".problem a");
      const field = page.locator(`[id="${id}"]`);
      await field.waitFor({ state: "visible" });
      assert.ok(await field.evaluate((it) => it === document.activeElement), `${name}: ${id} has no focus`);
      assert.equal(await field.getAttribute("aria-invalid"), "true");
    };
    await page.goto(`${tallyman.url}/dashboard/organizations/opal-legal?edit=api`);
    const form = page.locator("details[open] form").first();
    await form.locator("input[value=lasting]").check();
    await form.locator("[name=limit]").fill("many");
    await form.locator("[name=warnAt]").fill("70, 90");
    await form.getByRole("button", { name: "Save limit" }).click();
    await refused("refused-limit", "limit-api:limit");
    assert.equal(await form.locator("[name=limit]").inputValue(), "many");
    assert.equal(await form.locator("[name=warnAt]").inputValue(), "70, 90");
    assert.ok(await form.locator("input[value=lasting]").isChecked());
    await page.goto(`${tallyman.url}/dashboard/plans/team`);
    await page.fill("[name=limit-0]", "20 mio");
    await page.click("text=Save plan");
    await refused("refused-plan", "plan:limit-0");
    const complaints = page.complaints.filter((it) => !it.includes("400"));
    assert.deepEqual(complaints, [], look);
    await page.close();
  }
});

test("every page is accessible, light and dark, wide and narrow, and complains of nothing", async () => {
  const [webhook] = (await api("GET", "/v1/webhooks")).data;
  const pages = {
    overview: "/dashboard",
    organization: "/dashboard/organizations/opal-legal?edit=api",
    reset: "/dashboard/organizations/opal-legal/reset",
    plans: "/dashboard/plans",
    plan: "/dashboard/plans/team",
    keys: "/dashboard/keys",
    webhooks: "/dashboard/webhooks",
    webhook: `/dashboard/webhooks/${webhook.id}`,
    audit: "/dashboard/audit",
    missing: "/dashboard/organizations/nothing-here",
  };
  for (const [look, options] of Object.entries(LOOKS)) {
    const page = await signedIn(options);
    for (const [name, path] of Object.entries(pages)) {
      await page.goto(`${tallyman.url}${path}`);
      assert.deepEqual(await accessibilityFindings(page), [], `${name}, ${look}`);
      const excess = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(excess <= 0, `${name}, ${look} is ${excess} px too wide`);
      await takeScreenshot(page, import.meta.url, `${name}-${look}`);
    }
    const complaints = page.complaints.filter((it) => !it.includes("404"));
    assert.deepEqual(complaints, [], look);
    await page.close();
  }
});

test("a read key sees and cannot change", async () => {
  const { key } = await api("POST", "/v1/api-keys", { name: "support desk", scopes: ["read"] });
  const page = await signedIn({}, key);
  assert.equal(await page.getByRole("link", { name: "Keys" }).count(), 0);
  await page.goto(`${tallyman.url}/dashboard/organizations/opal-legal`);
  assert.match(await page.textContent("main"), /signed in with a read key/);
  assert.equal(await page.getByRole("button", { name: "Save limit" }).count(), 0);
  assert.deepEqual(await accessibilityFindings(page), []);
  await takeScreenshot(page, import.meta.url, "read-key");
  await page.close();
});
