// The components on a server, and the sizes and directives of what is published.

import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { createAuthClient } from "better-auth/react";
import { usageTrackingClient } from "@tallyman/better-auth/client";
import {
  ApiUsageCard,
  AuthUIProvider,
  DEFAULT_LOCALIZATION,
  FeatureAccessCard,
  FeatureGate,
  UsageDashboard,
  UsageHistoryChart,
  UsageTrackingProvider,
} from "@tallyman/better-auth/react";

const dist = new URL("../dist/", import.meta.url);
const render = (component, props, ...children) => renderToString(createElement(component, props, ...children)).replaceAll("<!-- -->", "");

/** A client whose requests fail the test. */
function untouchedClient() {
  const customFetchImpl = () => assert.fail("a server that renders must not load");
  return createAuthClient({ baseURL: "http://auth.test", fetchOptions: { customFetchImpl }, plugins: [usageTrackingClient()] });
}

test("a server renders what is still to be loaded as loading, and requests nothing", async () => {
  const html = render(
    AuthUIProvider,
    { authClient: untouchedClient() },
    createElement(ApiUsageCard),
    createElement(UsageDashboard),
    createElement(FeatureGate, { feature: "sso", loading: "wait", fallback: "no" }, "yes"),
  );
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(html.match(/aria-busy="true"/g).length, 3);
  assert.match(html, /wait$/);
});

test("a server renders data of your own, without styles that a strict CSP refuses and without its own clock or zone", () => {
  const html = render(UsageDashboard, {
    apiUsage: { current: 800, limit: 1000, resetDate: "2026-12-01T00:00:00Z" },
    features: { sso: true },
    history: [{ date: "2024-01-01", value: 100 }, { date: "2024-01-02", value: 150 }],
  });
  assert.match(html, /Resets on Dec 1, 2026/);
  assert.match(html, /250 calls from Jan 1, 2024 to Jan 2, 2024/);
  assert.doesNotMatch(html, /style=/);
});

test("percentages are rounded down, and nothing that is used is 0%", () => {
  const percentOf = (current, limit) => /<b>([^<]*%)<\/b>/.exec(render(ApiUsageCard, { current, limit }))[1];
  assert.equal(percentOf(57, 100), "57%");
  assert.equal(percentOf(99_996, 100_000), "99.9%");
  assert.equal(percentOf(9_007_199_254_740_990, 9_007_199_254_740_991), "99.9%");
  assert.equal(percentOf(1, 2_000_000), "&lt;0.1%");
  assert.equal(percentOf(0, 10), "0%");
  assert.equal(percentOf(25, 10), "250%");
});

test("data that is none is shown as nothing used", () => {
  for (const current of [NaN, -5, 0]) assert.match(render(ApiUsageCard, { current, limit: 10, resetDate: "nonsense" }), /<strong>0<\/strong>.*10 left/);
  assert.match(render(ApiUsageCard, { current: 3 }), /Unlimited/);
  assert.match(render(UsageHistoryChart, { data: [{ date: "nonsense", value: 5 }] }), /Nothing used in this range/);
});

test("no range has more than 120 bars, whatever the data", () => {
  const days = (count) => Array.from({ length: count }, (_, day) => ({ date: Date.UTC(2026, 10, 30) - day * 86_400_000, value: 1 }));
  const barsOf = (props) => render(UsageHistoryChart, props).match(/tallyman-column/g).length;
  assert.equal(barsOf({ data: days(120) }), 120);
  assert.equal(barsOf({ data: days(121) }), 4, "months");
  assert.equal(barsOf({ data: days(10_000) }), 120, "the newest ten years of months");
  for (const [timeRange, bars] of [["24h", 24], ["7d", 7], ["30d", 30], ["90d", 90], ["1y", 12]]) {
    assert.equal(barsOf({ data: days(800), timeRange }), bars, timeRange);
  }
});

test("every text can be replaced, by a provider and by a component, and numbers follow the locale", () => {
  const localization = Object.fromEntries(Object.keys(DEFAULT_LOCALIZATION).map((key) => [key, `~${key}~`]));
  const html = [
    render(UsageDashboard, { localization, apiUsage: { current: 950, limit: 1000, resetDate: 0 }, features: { a: false, b: true }, history: [{ date: 1, value: 1 }], onUpgrade() {} }),
    render(ApiUsageCard, { localization, current: 5, resetDate: 0 }),
    render(UsageHistoryChart, { localization, data: [] }),
  ].join("");
  const words = html.replace(/~\w+~/g, "").replace(/<[^>]*>/g, " ").match(/[a-z]{3,}/gi) ?? [];
  assert.deepEqual([...new Set(words)], ["Jan"], "only dates are not from the localization");

  const german = render(
    UsageTrackingProvider,
    { locale: "de", localization: { API_CALLS: "Aufrufe", LEFT: "noch {count}" } },
    createElement(ApiUsageCard, { current: 1234, limit: 50_000, localization: { LEFT: "{count} frei" }, resetDate: "2026-12-01" }),
  );
  assert.match(german, /Aufrufe.*1\.234.*48\.766 frei.*1\. Dez\. 2026/);
});

test("class names of your own are added to the parts", () => {
  const html = render(ApiUsageCard, { current: 9, limit: 10, className: "mine", classNames: { title: "big", bar: "thick" } });
  assert.match(html, /class="tallyman-card mine"/);
  assert.match(html, /class="tallyman-title big"/);
  assert.match(html, /class="tallyman-bar tallyman-warning thick"/);
});

test("features are named after their keys, or as configured", () => {
  const html = render(FeatureAccessCard, { features: { advanced_analytics: true, prioritySupport: false, API: 3 } });
  assert.match(html, /Advanced analytics.*Included.*Priority support.*Not included.*API.*3/);
  assert.match(render(FeatureAccessCard, { feature: "sso", features: { sso: "saml", other: true } }), /Sso(?!.*Other).*saml/);
});

test("a component without data, client and provider says what it needs, and so it does of a client without the plugin", () => {
  assert.throws(() => render(ApiUsageCard, {}), /pass data or authClient to the component, or put <UsageTrackingProvider/);
  const authClient = createAuthClient({ baseURL: "http://auth.test", fetchOptions: { customFetchImpl: () => assert.fail("no request") } });
  assert.throws(() => render(ApiUsageCard, { authClient }), /lacks the plugin usageTrackingClient\(\)/);
});

test("each published module with hooks or components is marked for the client", async () => {
  for (const file of await readdir(new URL("react/", dist))) {
    if (!file.endsWith(".js")) continue;
    const code = await readFile(new URL(`react/${file}`, dist), "utf8");
    const isClient = /from "react"|react\/jsx-runtime/.test(code);
    assert.equal(code.startsWith('"use client";'), isClient, file);
  }
});

test("client and components are small", async (t) => {
  const sizeOf = async (entry) => {
    const { outputFiles } = await build({
      entryPoints: [fileURLToPath(new URL(entry, dist))],
      bundle: true,
      minify: true,
      write: false,
      format: "esm",
      external: ["react", "react/jsx-runtime", "nanostores"],
    });
    return gzipSync(outputFiles[0].contents, { level: 9 }).length;
  };
  const sizes = { client: await sizeOf("client.js"), react: await sizeOf("react/index.js"), "styles.css": gzipSync(await readFile(new URL("styles.css", dist))).length };
  t.diagnostic(`minified and gzipped: ${Object.entries(sizes).map(([name, size]) => `${name} ${size} bytes`).join(", ")}`);
  assert.ok(sizes.client <= 2 * 1024, `client: ${sizes.client}`);
  assert.ok(sizes.react <= 7 * 1024, `react: ${sizes.react}`);
});
