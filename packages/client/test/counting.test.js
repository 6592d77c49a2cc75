import assert from "node:assert/strict";
import { after, test } from "node:test";

import { startTallyman } from "tallyman-testing/tallyman";

import { createTallyman } from "./support.js";

const service = await startTallyman({ TALLYMAN_DEFAULT_LIMIT: "20" });
after(() => service.remove());
const tallyman = createTallyman(service);

test("a consume and a track return the state of the meter", async () => {
  const consumed = await tallyman.consume({ organizationId: "state", amount: 2 });
  assert.equal(consumed.allowed, true);
  assert.equal(consumed.current, 2);
  assert.equal(consumed.remaining, 18);
  const tracked = await tallyman.track({ organizationId: "state", amount: 20 });
  assert.equal(tracked.allowed, false, "a track counts beyond the limit, and says so");
  assert.equal(tracked.current, 22);
  assert.equal(tracked.overage, 2);
});

test("a denial is a result that says who denied, whether it is the first, and when to retry", async () => {
  const denied = await tallyman.consume({ organizationId: "denied", amount: 21 });
  assert.equal(denied.organizationId, "denied");
  assert.equal(denied.allowed, false);
  assert.equal(denied.meter, "api");
  assert.equal(denied.current, 0);
  assert.equal(denied.limit, 20);
  assert.deepEqual(denied.deniedBy, ["api"]);
  assert.equal(denied.first, true);
  // 21 never fit into a limit of 20.
  assert.equal(denied.retryAt, undefined);
  assert.equal(denied.retryAfter, undefined);
  assert.deepEqual(Object.keys(denied).filter((name) => ["type", "title", "status", "code", "detail", "index"].includes(name)), []);

  await tallyman.consume({ organizationId: "denied", amount: 20 });
  const full = await tallyman.consume({ organizationId: "denied" });
  assert.equal(full.allowed, false);
  assert.equal(full.first, undefined);
  assert.equal(full.retryAt, full.resetDate);
  const seconds = (Date.parse(full.resetDate) - Date.now()) / 1000;
  assert.ok(Math.abs(full.retryAfter - seconds) <= 60, `${full.retryAfter} is about ${seconds}`);
});

test("several meters are charged all or none", async () => {
  const granted = await tallyman.consume({ organizationId: "several", meters: { api: 1, tokens: 1200 } });
  assert.equal(granted.meters.tokens.current, 1200);
  const denied = await tallyman.consume({ organizationId: "several", meters: { api: 20, tokens: 1 } });
  assert.equal(denied.allowed, false);
  assert.deepEqual(denied.deniedBy, ["api"]);
  assert.equal(denied.meters.api.current, 1);
  assert.equal(denied.meters.tokens.current, 1200);
});

test("check counts nothing, and refund says how much it gave back", async () => {
  await tallyman.consume({ organizationId: "refund", amount: 5 });
  assert.equal((await tallyman.check({ organizationId: "refund", amount: 15 })).allowed, true);
  const denied = await tallyman.check({ organizationId: "refund", amount: 16 });
  assert.equal(denied.allowed, false);
  assert.equal(denied.current, 5);
  const refunded = await tallyman.refund({ organizationId: "refund", amount: 7 });
  assert.equal(refunded.applied, 5);
  assert.equal(refunded.current, 0);
});

test("a repeated idempotency key gets the first response and counts nothing", async () => {
  const options = { idempotencyKey: "order-42" };
  const first = await tallyman.consume({ organizationId: "replay", amount: 3 }, options);
  const second = await tallyman.consume({ organizationId: "replay", amount: 3 }, options);
  assert.equal(first.replayed, undefined);
  assert.deepEqual(second, { ...first, replayed: true });
  await assert.rejects(tallyman.consume({ organizationId: "replay", amount: 4 }, options), { status: 422, code: "idempotency_key_reused" });
  assert.equal((await tallyman.usage("replay")).meters.api.current, 3);
});

for (const coalesce of [true, false]) {
  test(`of 50 concurrent consumes at a limit of 20, 20 are allowed and one denial is the first (coalesce: ${coalesce})`, async () => {
    const organizationId = `fifty-${coalesce}`;
    const client = createTallyman({ ...service, coalesce });
    const results = await Promise.all(Array.from({ length: 50 }, () => client.consume({ organizationId })));
    assert.equal(results.filter((result) => result.allowed).length, 20);
    assert.equal(results.filter((result) => result.first).length, 1);
    assert.equal((await client.usage(organizationId)).meters.api.current, 20);
  });
}

test("each item of a batch has its own result", async () => {
  const summary = await tallyman.batch([
    { op: "consume", organizationId: "items", amount: 20 },
    { op: "consume", organizationId: "items" },
    { op: "track", organizationId: "items", amount: 0 },
    { op: "track", organizationId: "items" },
  ]);
  assert.deepEqual([summary.counted, summary.denied, summary.failed], [2, 1, 1]);
  assert.deepEqual(summary.results.map((result) => result.status), [200, 429, 400, 200]);
  assert.equal(summary.results[3].current, 21);
  const two = [{ op: "track", organizationId: "items" }, { op: "consume", organizationId: "items" }];
  const denied = await tallyman.batch(two, { results: "denied" });
  assert.deepEqual(denied.results.map((result) => result.index), [1]);
});
