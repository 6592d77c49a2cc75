import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, test } from "node:test";

import { verifyWebhook } from "@tallyman/client";
import { startTallyman } from "tallyman-testing/tallyman";

import { createTallyman } from "./support.js";

const service = await startTallyman();
after(() => service.remove());
const tallyman = createTallyman(service);

/** A receiver that hands out each request once, as a Web `Request` and as Node has it. */
const received = [];
const waiting = [];
const receiver = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  response.writeHead(204).end();
  const delivery = { headers: request.headers, body: Buffer.concat(chunks) };
  const next = waiting.shift();
  if (next) next(delivery);
  else received.push(delivery);
}).listen(0, "127.0.0.1");
await once(receiver, "listening");
after(() => receiver.close());
const delivery = () => received.shift() ?? new Promise((resolve) => waiting.push(resolve));

const url = `http://127.0.0.1:${receiver.address().port}/`;
const webhook = await tallyman.request("POST /v1/webhooks", { body: { url } });
const sendTest = () => tallyman.request("POST /v1/webhooks/{id}/test", { path: { id: webhook.id } });
await sendTest();
const sample = await delivery();

const asRequest = ({ headers, body }, changes = {}) =>
  new Request("https://app.example/hook", { method: "POST", headers: { ...headers, ...changes }, body });
const rejected = (request, secret = webhook.secret) =>
  assert.rejects(verifyWebhook(request, secret), { name: "TallymanError", code: "invalid_webhook" });

test("a webhook of Tallyman is verified and is an event", async () => {
  const event = await verifyWebhook(asRequest(sample), webhook.secret);
  assert.equal(event.id, sample.headers["webhook-id"]);
  assert.equal(event.type, "webhook.test");
  assert.equal(event.data.webhookId, webhook.id);
  assert.ok(Date.parse(event.timestamp) > 0);
  assert.equal(tallyman.verifyWebhook, verifyWebhook);
});

test("a request may be as Node has it, with its body as bytes or as text", async () => {
  const event = await verifyWebhook(sample, webhook.secret);
  assert.deepEqual(await verifyWebhook({ ...sample, body: sample.body.toString() }, webhook.secret), event);
  const capitals = Object.fromEntries(Object.entries(sample.headers).map(([name, value]) => [name.toUpperCase(), [value]]));
  assert.deepEqual(await verifyWebhook({ ...sample, headers: capitals }, webhook.secret), event);
  assert.deepEqual(await verifyWebhook({ ...sample, headers: new Headers(sample.headers) }, webhook.secret), event);
});

test("an event of usage has its count", { timeout: 30_000 }, async () => {
  await tallyman.putOrganization("warned", {});
  await tallyman.patchLimits("warned", { api: { limit: 10, warnAt: [80] } });
  await tallyman.track({ organizationId: "warned", amount: 8 });
  for (;;) {
    const event = await verifyWebhook(asRequest(await delivery()), webhook.secret);
    if (event.type !== "usage.warning") continue;
    assert.deepEqual([event.data.organizationId, event.data.threshold, event.data.current, event.data.limit], ["warned", 80, 8, 10]);
    const { data } = await tallyman.events({ type: ["usage.warning"], organizationId: "warned" });
    assert.deepEqual(data[0], event);
    break;
  }
});

test("another body, id, time, signature or secret is rejected", async () => {
  await rejected(asRequest({ ...sample, body: sample.body.toString().replace("webhook.test", "usage.warning") }));
  await rejected(asRequest(sample, { "webhook-id": "evt_00000000000000000000000000000000" }));
  await rejected(asRequest(sample, { "webhook-timestamp": String(Number(sample.headers["webhook-timestamp"]) + 1) }));
  for (const signature of ["v1,", "v1,AAAA", "v1,not base64!", "v1a,x", sample.headers["webhook-signature"].slice(3)]) {
    await rejected(asRequest(sample, { "webhook-signature": signature }));
  }
  await rejected(asRequest(sample), `whsec_${btoa("another secret")}`);
});

test("a request without a signature is rejected", async () => {
  for (const name of ["webhook-id", "webhook-timestamp", "webhook-signature"]) {
    const headers = { ...sample.headers };
    delete headers[name];
    await rejected(asRequest({ ...sample, headers }));
  }
});

test("a webhook is accepted up to five minutes from when it was sent, and not later or earlier", async (t) => {
  const sent = Number(sample.headers["webhook-timestamp"]) * 1000;
  t.mock.timers.enable({ apis: ["Date"], now: sent + 299_000 });
  await verifyWebhook(asRequest(sample), webhook.secret);
  t.mock.timers.setTime(sent + 301_000);
  await rejected(asRequest(sample));
  t.mock.timers.reset();
  t.mock.timers.enable({ apis: ["Date"], now: sent - 301_000 });
  await rejected(asRequest(sample));
});

test("after the secret was rotated both verify", { timeout: 30_000 }, async () => {
  const { secret } = await tallyman.request("POST /v1/webhooks/{id}/rotate-secret", { path: { id: webhook.id } });
  await sendTest();
  for (;;) {
    const request = await delivery();
    if (request.headers["webhook-signature"].split(" ").length < 2) continue;
    for (const each of [webhook.secret, secret]) assert.equal((await verifyWebhook(request, each)).id, request.headers["webhook-id"]);
    break;
  }
});

test("a secret that is none is the receiver's mistake, not the sender's", async () => {
  for (const secret of ["", "secret", "whsec_", "whsec_%"]) {
    await assert.rejects(verifyWebhook(asRequest(sample), secret), { name: "TallymanError", code: "not_configured" });
  }
});
