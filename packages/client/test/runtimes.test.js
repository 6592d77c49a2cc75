import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import vm from "node:vm";

import { build } from "esbuild";

const WEB = [
  "fetch", "Request", "Response", "Headers", "URLSearchParams", "AbortController", "TextEncoder", "TextDecoder",
  "crypto", "performance", "setTimeout", "clearTimeout", "atob", "btoa",
];

test("the client runs where there are web standards and nothing of Node: in browsers and edge runtimes", async () => {
  const entry = fileURLToPath(import.meta.resolve("@tallyman/client"));
  const options = { bundle: true, write: false, platform: "browser", format: "iife", globalName: "client" };
  const { outputFiles } = await build({ ...options, entryPoints: [entry] });
  const context = vm.createContext(Object.fromEntries(WEB.map((name) => [name, globalThis[name]])));
  vm.runInContext(outputFiles[0].text, context);
  const { createTallyman, verifyWebhook } = vm.runInContext("client", context);

  assert.throws(() => createTallyman(), { code: "not_configured" });
  const responses = [new Response("{}", { status: 503 }), Response.json({ allowed: true, current: 1 })];
  const tallyman = createTallyman({ url: "https://tallyman.example", key: "tm_key", fetch: async () => responses.shift() });
  assert.equal((await tallyman.consume({ organizationId: "org" })).current, 1);

  const [id, sentAt, body] = ["evt_1", String(Math.floor(Date.now() / 1000)), '{"type":"webhook.test","data":{"webhookId":"w"}}'];
  const signature = createHmac("sha256", "secret").update(`${id}.${sentAt}.${body}`).digest("base64");
  const headers = { "webhook-id": id, "webhook-timestamp": sentAt, "webhook-signature": `v1,${signature}` };
  const event = await verifyWebhook(new Request("https://app.example", { method: "POST", headers, body }), `whsec_${btoa("secret")}`);
  assert.equal(event.data.webhookId, "w");
});
