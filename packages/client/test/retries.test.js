import assert from "node:assert/strict";
import { after, test } from "node:test";

import { badGateway, faultyFetch, lost, refused, unavailable } from "tallyman-testing/faults";
import { startTallyman } from "tallyman-testing/tallyman";

import { createTallyman } from "./support.js";

const service = await startTallyman();
after(() => service.remove());

/** A client whose next requests have these faults. */
function client(faults, options = {}) {
  const fetch = faultyFetch();
  fetch.next(...faults);
  return { fetch, tallyman: createTallyman({ ...service, fetch, ...options }) };
}

const current = async (tallyman, id) => (await tallyman.usage(id)).meters.api.current;

test("a consume, a track, a refund and a batch whose responses are lost count once", async () => {
  const organizationId = "lost";
  const calls = {
    consume: (tallyman) => tallyman.consume({ organizationId, amount: 10 }),
    track: (tallyman) => tallyman.track({ organizationId, amount: 200 }),
    refund: (tallyman) => tallyman.refund({ organizationId, amount: 3 }),
    batch: (tallyman) => tallyman.batch([{ op: "track", organizationId, amount: 4000 }, { op: "consume", organizationId, amount: 50_000 }]),
  };
  for (const [name, call] of Object.entries(calls)) {
    const { fetch, tallyman } = client([lost, lost]);
    const result = await call(tallyman);
    assert.ok(name === "batch" ? result.replayed === 2 : result.replayed, name);
    assert.equal(fetch.requests.length, 3);
    const keys = new Set(fetch.requests.map(({ headers }) => headers["idempotency-key"]));
    assert.equal(keys.size, 1);
    assert.match([...keys][0], /^[0-9a-f-]{36}$/);
  }
  assert.equal(await current(client([]).tallyman, organizationId), 10 + 200 - 3 + 4000);
});

test("a reset and an adjustment whose responses are lost are done once", async () => {
  const { tallyman } = client([]);
  await tallyman.track({ organizationId: "admin", amount: 7 });
  const reset = await client([lost]).tallyman.reset("admin");
  assert.equal(reset.meters.api.previousCount, 7, "the response to the first attempt");
  const adjusted = await client([lost]).tallyman.adjust("admin", { amount: 5, reason: "goodwill" });
  assert.equal(adjusted.current, 5);
  assert.equal(await current(tallyman, "admin"), 5);
});

test("what was not executed is retried: refused, 503, and a proxy's 502", async () => {
  for (const fault of [refused, unavailable(), badGateway]) {
    const { fetch, tallyman } = client([fault, fault]);
    await tallyman.consume({ organizationId: "again" });
    await tallyman.usage("again");
    assert.equal(fetch.requests.length, 4);
  }
  assert.equal(await current(client([]).tallyman, "again"), 3);
});

test("after the last attempt its failure is thrown", async () => {
  const { fetch, tallyman } = client([refused, refused, unavailable()], { retries: 2 });
  await assert.rejects(tallyman.consume({ organizationId: "last" }), { name: "TallymanError", status: 503, code: "overloaded" });
  assert.equal(fetch.requests.length, 3);
});

test("Retry-After is waited for", async () => {
  const { tallyman } = client([unavailable(1)]);
  const started = performance.now();
  await tallyman.consume({ organizationId: "wait" });
  assert.ok(performance.now() - started >= 1000);
});

test("a wait that would not end in time is not begun", async () => {
  const { fetch, tallyman } = client([unavailable(3600)]);
  await assert.rejects(tallyman.consume({ organizationId: "late" }), { status: 503, retryAfter: 3600 });
  assert.equal(fetch.requests.length, 1);
});

test("a denial and a problem are not retried", async () => {
  const { fetch, tallyman } = client([]);
  await tallyman.putOrganization("responses", {});
  await tallyman.patchLimits("responses", { api: { limit: 0 } });
  assert.equal((await tallyman.consume({ organizationId: "responses" })).allowed, false);
  await assert.rejects(tallyman.consume({ organizationId: "?" }), { status: 400 });
  await assert.rejects(tallyman.usage("unknown"), { status: 404 });
  assert.equal(fetch.requests.length, 5);
});

test("changes without an idempotency key are tried once", async () => {
  const changes = [
    (tallyman) => tallyman.putOrganization("once", {}),
    (tallyman) => tallyman.patchOrganization("once", {}),
    (tallyman) => tallyman.deleteOrganization("once"),
    (tallyman) => tallyman.patchLimits("once", {}),
    (tallyman) => tallyman.request("POST /v1/api-keys", { body: { name: "new", scopes: ["read"] } }),
  ];
  for (const change of changes) {
    const { fetch, tallyman } = client([refused]);
    await assert.rejects(change(tallyman), { code: "unreachable" });
    assert.equal(fetch.requests.length, 1);
    assert.equal(fetch.requests[0].headers["idempotency-key"], undefined);
  }
});

test("without retries a call is made once, and has the caller's idempotency key or none", async () => {
  const { fetch, tallyman } = client([refused], { retries: 0 });
  await assert.rejects(tallyman.consume({ organizationId: "none" }), { code: "unreachable" });
  await tallyman.consume({ organizationId: "none" });
  await tallyman.consume({ organizationId: "none" }, { idempotencyKey: "mine" });
  assert.deepEqual(fetch.requests.map(({ headers }) => headers["idempotency-key"]), [undefined, undefined, "mine"]);
});
