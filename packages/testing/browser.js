// A real Chromium, and pages of React that are bundled for it.

import { accessSync, constants, readFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { once } from "node:events";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const require = createRequire(import.meta.url);
const REACT_18 = fileURLToPath(new URL("node_modules", import.meta.url));

/** Starts the Chromium of the `PATH`, or the one that `CHROMIUM` names. */
export function startBrowser() {
  return chromium.launch({ executablePath: executable(process.env.CHROMIUM ?? "chromium"), args: ["--no-sandbox"] });
}

function executable(name) {
  const candidates = name.includes("/") ? [name] : process.env.PATH.split(delimiter).map((directory) => join(directory, name));
  const found = candidates.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
  if (!found) throw new Error(`Chromium is missing: install it, or name it in CHROMIUM (looked for ${name})`);
  return found;
}

/**
 * Bundles a script for the browser.
 *
 * @param {URL} entry the script
 * @param {{ react?: 18 | 19, define?: Record<string, string> }} options which React; constants
 */
export async function bundle(entry, { react = 19, define = {} } = {}) {
  const alias = react === 18 ? { react: join(REACT_18, "react"), "react-dom": join(REACT_18, "react-dom") } : {};
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(entry)],
    bundle: true,
    write: false,
    format: "esm",
    target: "es2022",
    jsx: "automatic",
    alias,
    define: { "process.env.NODE_ENV": '"development"', ...define },
    logLevel: "error",
  });
  return outputFiles[0].text;
}

/** A page that runs a script, with style sheets, and perhaps HTML that a server has rendered. */
export function pageOf(script, { styles = "", body = '<div id="root"></div>', html = "" } = {}) {
  return `<!doctype html><html lang="en" ${html}><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Test</title><link rel="icon" href="data:,"><style>${styles}</style></head><body>${body}<script type="module">${script.replaceAll("</script", "<\\/script")}</script></body></html>`;
}

/** Serves pages by path on a free port of 127.0.0.1, until it is closed. */
export async function servePages(pages) {
  const server = createServer((request, response) => {
    const page = pages[new URL(request.url, "http://localhost").pathname];
    response.writeHead(page ? 200 : 404, { "content-type": "text/html; charset=utf-8" });
    response.end(page ?? "");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { url: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}

/** Opens a page; what it writes to the console as an error or a warning, and what it throws, is in `page.complaints`. */
export async function openPage(browser, url, options = {}) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce", ...options });
  page.complaints = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && page.complaints.push(message.text()));
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  await page.goto(url);
  return page;
}

/** What axe finds on a page: WCAG 2.2 AA and best practices. */
export async function accessibilityFindings(page) {
  await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id}: ${target.join(" ")}: ${failureSummary}`));
}

/** Stores a picture of a page, or of a part of it, in the folder `screenshots` next to a test, for people to look at. */
export async function takeScreenshot(page, testUrl, name) {
  const folder = fileURLToPath(new URL("screenshots/", testUrl));
  await mkdir(folder, { recursive: true });
  const options = { path: join(folder, `${name}.png`), ...("goto" in page ? { fullPage: true } : {}) };
  // On a busy machine Chromium may take none for as long as it is waited for, and then the next at once.
  await page.screenshot({ ...options, timeout: 10_000 }).catch(() => page.screenshot(options));
}
