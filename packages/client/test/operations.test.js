import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { faultyFetch } from "tallyman-testing/faults";
import { startTallyman } from "tallyman-testing/tallyman";

import { createTallyman } from "./support.js";

const service = await startTallyman({ TALLYMAN_DEFAULT_LIMIT: "1000" });
after(() => service.remove());
const fetch = faultyFetch();
const tallyman = createTallyman({ ...service, fetch });

test("an organization is created, changed, read and deleted", async () => {
  const created = await tallyman.putOrganization("life", { resetPeriod: "daily", metadata: { customer: "cus_1" } });
  assert.equal(created.resetPeriod, "daily");
  const changed = await tallyman.patchOrganization("life", { timeZone: "Europe/Berlin", features: { sso: true } });
  assert.equal(changed.timeZone, "Europe/Berlin");
  const { limits } = await tallyman.patchLimits("life", { api: { limit: 5, enforcement: "soft" } });
  assert.equal(limits.api.limit, 5);
  assert.equal((await tallyman.organization("life")).limits.api.enforcement, "soft");
  assert.equal((await tallyman.limits("life")).limits.api.source, "organization");
  assert.equal((await tallyman.feature("life", "sso")).enabled, true);
  assert.equal((await tallyman.feature("life", "audit log")).enabled, false);

  await tallyman.track({ organizationId: "life", amount: 7 });
  assert.equal((await tallyman.usage("life")).meters.api.overage, 2);
  assert.equal((await tallyman.adjust("life", { amount: -1, reason: "goodwill" })).current, 6);
  assert.equal((await tallyman.reset("life", { meters: ["api"], reason: "a new start" })).meters.api.previousCount, 6);
  assert.equal((await tallyman.deleteOrganization("life")).deleted, true);
  await assert.rejects(tallyman.organization("life"), { status: 404 });
});

test("conditions: ifNoneMatch creates only, ifMatch changes only what has not changed", async () => {
  const { version } = await tallyman.putOrganization("conditions", {}, { ifNoneMatch: "*" });
  await assert.rejects(tallyman.putOrganization("conditions", {}, { ifNoneMatch: "*" }), { status: 412, code: "precondition_failed" });
  const changed = await tallyman.patchOrganization("conditions", { resetDay: 15 }, { ifMatch: version });
  assert.equal(changed.resetDay, 15);
  await assert.rejects(tallyman.patchOrganization("conditions", { resetDay: 16 }, { ifMatch: version }), { status: 412 });
  await assert.rejects(tallyman.putOrganization("absent", {}, { ifMatch: "*" }), { status: 412 });
});

test("history, events and organizations are read with their queries", async () => {
  await tallyman.track({ organizationId: "queries", amount: 3 });
  await assertEventually(async () => {
    const { data } = await tallyman.history("queries", { granularity: "hour", meter: "api" });
    assert.deepEqual(data.map(({ used }) => used), [3]);
  });
  const { data } = await tallyman.organizations({ search: "queries", sort: "-current" });
  assert.deepEqual(data.map(({ organizationId }) => organizationId), ["queries"]);
  await tallyman.reset("queries");
  const events = await tallyman.events({ organizationId: "queries", type: ["usage.reset"] });
  assert.equal(events.data[0].data.previousCount, 3);
  const rows = await tallyman.request("GET /v1/history", { query: { organizationId: ["queries", "other"], granularity: "hour" } });
  assert.ok(rows.data.every(({ organizationId }) => organizationId === "queries"));
  assert.match(fetch.requests.at(-1).path, /organizationId=queries&organizationId=other/);
  assert.deepEqual(await tallyman.resetExpired(), { resetCount: 0, organizations: [], truncated: false });
});

test("request reaches what has no method: plans, API keys, webhooks, the audit log, verification", async () => {
  const path = { id: "pro" };
  const plan = await tallyman.request("PUT /v1/plans/{id}", { path, body: { limits: { api: { limit: 10_000 } } }, ifNoneMatch: "*" });
  assert.equal(plan.limits.api.limit, 10_000);
  assert.equal(await tallyman.request("DELETE /v1/plans/{id}", { path }), undefined);

  const key = await tallyman.request("POST /v1/api-keys", { body: { name: "reader", scopes: ["read"] } });
  const reader = createTallyman({ url: service.url, key: key.key });
  await assert.rejects(reader.track({ organizationId: "org" }), { status: 403, code: "forbidden" });

  const webhook = await tallyman.request("POST /v1/webhooks", { body: { url: "http://127.0.0.1:9/", events: ["usage.warning"] } });
  assert.match(webhook.secret, /^whsec_/);
  const disabled = await tallyman.request("PATCH /v1/webhooks/{id}", { path: { id: webhook.id }, body: { enabled: false } });
  assert.equal(disabled.enabled, false);

  const { data } = await tallyman.request("GET /v1/audit", { query: { action: "plan.put" } });
  assert.equal(data[0].after.limits.api.limit, 10_000);
  assert.deepEqual((await tallyman.request("GET /v1/verify")).data, []);
});

test("list follows the pages", async () => {
  for (const id of ["page-1", "page-2", "page-3"]) await tallyman.putOrganization(id, {});
  fetch.requests.length = 0;
  const ids = [];
  const query = { search: "page-", pageSize: 2 };
  for await (const { organizationId } of tallyman.list("GET /v1/organizations", { query })) ids.push(organizationId);
  assert.deepEqual(ids, ["page-1", "page-2", "page-3"]);
  assert.equal(fetch.requests.length, 2);
});

test("the generated types are those of docs/openapi.json", async () => {
  const cwd = fileURLToPath(new URL("../", import.meta.url));
  await promisify(execFile)("npm", ["run", "generate", "--", "--check"], { cwd });
});

/** History is stored at most a second after a call. */
async function assertEventually(assertion) {
  for (const deadline = Date.now() + 10_000; ; ) {
    try {
      return await assertion();
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}
