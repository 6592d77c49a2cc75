// The example as a visitor sees it, from signing up to a raised limit.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { accessibilityFindings, openPage, startBrowser, takeScreenshot } from "tallyman-testing/browser";
import { startTallyman } from "tallyman-testing/tallyman";

const folder = fileURLToPath(new URL("..", import.meta.url));

let browser;
let tallyman;
before(async () => {
  [browser, tallyman] = await Promise.all([startBrowser(), startTallyman()]);
});
after(async () => {
  await browser?.close();
  await tallyman?.remove();
});

/** Starts the example; resolves once it says where it is. */
async function startExample(environment) {
  const child = spawn(process.execPath, ["server.js"], { cwd: folder, env: { ...process.env, ...environment }, stdio: ["ignore", "pipe", "pipe"] });
  const output = [];
  const url = await new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on("line", (line) => {
        output.push(line);
        const [, found] = /The example is at (\S+)/.exec(line) ?? [];
        if (found) resolve(found);
      });
    }
    child.on("close", () => reject(new Error(output.join("\n"))));
  });
  const stop = async () => {
    child.kill();
    await once(child, "close");
  };
  return { url, output, stop };
}

async function freePort() {
  const server = createServer().listen(0, "localhost");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return String(port);
}

async function signUp(page, name) {
  await page.getByLabel("Name").fill(name);
  await page.getByLabel("Email").fill(`${name.toLowerCase()}@example.com`);
  await page.getByLabel("Password").fill("correct horse battery");
  await page.getByRole("button", { name: "Sign up" }).click();
  await page.getByRole("heading", { name: "Your organization" }).waitFor();
}

test("sign up, make an organization, use it up, read why, and go on once an administrator has raised the limit", async (t) => {
  const example = await startExample({ TALLYMAN_URL: tallyman.url, TALLYMAN_API_KEY: tallyman.key, PORT: await freePort() });
  t.after(example.stop);
  const page = await openPage(browser, example.url, { viewport: { width: 1280, height: 860 } });
  const look = async (name) => {
    assert.deepEqual(await accessibilityFindings(page), [], name);
    await takeScreenshot(page, import.meta.url, name);
  };
  const card = page.locator("article").first();
  const shows = (text) => card.getByText(text).waitFor();

  await page.getByRole("heading", { name: "Reports" }).waitFor();
  await look("1-sign-up");
  await signUp(page, "Ada");
  await look("2-organization");
  await page.getByLabel("Name").fill("Acme Robotics");
  await page.getByRole("button", { name: "Make organization" }).click();
  await shows("of 20 calls");
  await look("3-empty");

  const countOf = async () => Number(await card.locator("strong").innerText());
  const before = await countOf();
  await page.getByRole("button", { name: "Make a report" }).click();
  await shows(`${20 - before - 1} left`);
  assert.equal(await countOf(), before + 1);

  const five = page.getByRole("button", { name: "Make five" });
  for (const state of ["Within limit", "Within limit", "Warning"]) {
    await five.click();
    await page.locator("button:enabled", { hasText: "Make five" }).waitFor();
    await shows(state);
  }
  await look("4-warning");
  await five.click();
  await page.getByText("All 20 calls of this period are used.").waitFor();
  await shows("Limit reached");
  assert.equal(await countOf(), 20);
  assert.ok(example.output.some((line) => line.endsWith("has used 80% of its calls")), example.output.join("\n"));
  assert.ok(example.output.some((line) => line.endsWith("has used all of its 20 calls")), example.output.join("\n"));
  await look("5-limit");

  await card.getByRole("button", { name: "Upgrade plan" }).click();
  await page.keyboard.type("100");
  await page.getByRole("button", { name: "Set limit" }).click();
  await shows("of 100 calls");
  await page.getByRole("button", { name: "Make a report" }).click();
  await shows("79 left");
  await page.getByText("reports were made").waitFor();
  await page.locator(".tallyman-chart").waitFor();
  await look("6-raised");
  await page.setViewportSize({ width: 360, height: 780 });
  await page.emulateMedia({ colorScheme: "dark" });
  await look("7-narrow-dark");
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);

  await page.getByRole("button", { name: "Begin a new period" }).click();
  await shows("100 left");
  await page.getByRole("button", { name: "Sign out" }).click();
  await signUp(page, "Grace");
  await page.getByLabel("Name").fill("Other");
  await page.getByRole("button", { name: "Make organization" }).click();
  await shows("of 20 calls");
  assert.equal(await page.getByText("Administration").count(), 0, "only the first user may change limits");
  await page.close();
});
