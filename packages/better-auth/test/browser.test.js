// The components in a real browser, with a real auth server and a real Tallyman, on the same origin and on another.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { toNodeHandler } from "better-auth/node";
import { accessibilityFindings, bundle, openPage, pageOf, startBrowser, takeScreenshot } from "tallyman-testing/browser";
import { startTallyman } from "tallyman-testing/tallyman";
import { makeAuth, memoryDatabase } from "./support.js";

const LIMIT = 12;
const styles = (await Promise.all(["../dist/styles.css", "pages/page.css"].map((path) => readFile(new URL(path, import.meta.url), "utf8")))).join("");

let browser;
let tallyman;
before(async () => {
  [browser, tallyman] = await Promise.all([startBrowser(), startTallyman({ TALLYMAN_FLUSH_INTERVAL: "200ms" })]);
  await tallyman.api("PUT", "/v1/plans/team", { limits: { api: { limit: LIMIT } }, features: { sso: true, seats: 5 } });
});
after(async () => {
  await browser?.close();
  await tallyman?.remove();
});

/** An HTTP server on a free port; `origin` is known before it answers. */
async function serve() {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return Object.assign(server, { origin: `http://127.0.0.1:${server.address().port}` });
}

/** An auth server and a page that uses it, on its origin or on one of its own. */
async function startApp({ crossOrigin }) {
  const authServer = await serve();
  const pageServer = crossOrigin ? await serve() : authServer;
  const database = memoryDatabase();
  const options = { database, baseURL: authServer.origin, trustedOrigins: [pageServer.origin] };
  const auth = makeAuth({ tallyman: { url: tallyman.url, key: tallyman.key, timeout: 5_000 }, defaultPlanId: "team" }, options);
  const handler = toNodeHandler(auth);
  const page = pageOf(await bundle(new URL("pages/app.jsx", import.meta.url), { define: { AUTH_URL: JSON.stringify(authServer.origin) } }), { styles });
  authServer.on("request", (request, response) => {
    if (!request.url.startsWith("/api/auth")) return;
    response.setHeader("access-control-allow-origin", pageServer.origin);
    response.setHeader("access-control-allow-credentials", "true");
    response.setHeader("access-control-allow-headers", "content-type");
    if (request.method === "OPTIONS") response.writeHead(204).end();
    else handler(request, response);
  });
  pageServer.on("request", (request, response) => {
    if (request.url === "/") response.writeHead(200, { "content-type": "text/html" }).end(page);
  });
  const stop = () => [authServer, pageServer].forEach((server) => server.close());
  return { url: pageServer.origin, database, stop };
}

for (const crossOrigin of [false, true]) {
  test(`from signing up to a raised limit the card tells what holds, ${crossOrigin ? "auth server on another origin" : "same origin"}`, async () => {
    const app = await startApp({ crossOrigin });
    const page = await openPage(browser, app.url);
    const card = page.locator(".card");
    const shows = (text) => card.getByText(text).waitFor();
    const call = (name, ...args) =>
      page.evaluate(([name, args]) => name.split(".").reduce((object, key) => object[key], authClient)(...args), [name, args]);

    await shows("Sign in to see it.");
    const email = `user-${crossOrigin}@example.com`;
    await call("signUp.email", { name: "User", email, password: "correct horse battery" });
    await shows("No organization is active.");

    const loads = [];
    page.on("request", (request) => request.url().includes("/get-usage?") || request.url().endsWith("/get-usage") ? loads.push(request) : 0);
    const acme = await call("organization.create", { name: "Acme", slug: `acme-${crossOrigin}` });
    await shows(`of ${LIMIT} calls`);
    await shows("Within limit");
    assert.equal(loads.length, 1, "all components share a request");
    assert.equal(await page.locator(".gate").innerText(), "single sign-on");
    assert.match(await page.locator(".dashboard").innerText(), /Seats\s+5\s+Sso\s+Included/);
    assert.deepEqual(await accessibilityFindings(page), []);

    let refused;
    for (let calls = 0; calls <= LIMIT && !refused; calls++) refused = (await call("organization.listMembers", {})).error;
    assert.deepEqual([refused.status, refused.code], [429, "API_LIMIT_EXCEEDED"]);
    await shows("Limit reached");
    assert.equal(await card.locator("strong").innerText(), String(LIMIT));
    await page.locator(".dashboard .tallyman-chart").waitFor();
    await takeScreenshot(page, import.meta.url, `app-${crossOrigin ? "cross" : "same"}-origin`);

    app.database.user.find((user) => user.email === email).role = "admin";
    await call("usageTracking.updateLimits", { organizationId: acme.data.id, apiLimit: 100 });
    await shows("of 100 calls");
    await call("usageTracking.resetUsage", { organizationId: acme.data.id });
    await shows("100 left");

    await call("organization.create", { name: "Other", slug: `other-${crossOrigin}` });
    await shows(`of ${LIMIT} calls`);
    await call("organization.setActive", { organizationId: acme.data.id });
    await shows("of 100 calls");
    await call("signOut");
    await shows("Sign in to see it.");
    assert.equal(await page.getByText("of 100 calls").count(), 0);
    await page.close();
    app.stop();
  });
}

test("while Tallyman is away the last figures stay, with a word about it, until it is back", async () => {
  const app = await startApp({ crossOrigin: false });
  const page = await openPage(browser, app.url);
  const card = page.locator(".card");
  await page.evaluate(() => authClient.signUp.email({ name: "User", email: "away@example.com", password: "correct horse battery" }));
  await page.evaluate(() => authClient.organization.create({ name: "Away", slug: "away" }));
  await card.getByText(`of ${LIMIT} calls`).waitFor();

  await tallyman.stop();
  await page.evaluate(() => authClient.$usageTracking.fetchUsage());
  await card.getByText("Usage could not be loaded").waitFor();
  assert.equal(await card.getByText(`of ${LIMIT} calls`).count(), 1);
  assert.equal(await page.locator(".gate").innerText(), "single sign-on");

  const retried = page.waitForRequest(/get-usage$/);
  await card.getByRole("button", { name: "Try again" }).click();
  await retried;

  await tallyman.start();
  await card.getByRole("alert").waitFor({ state: "detached" });
  assert.equal(await card.getByText(`of ${LIMIT} calls`).count(), 1);
  await page.close();
  app.stop();
});
