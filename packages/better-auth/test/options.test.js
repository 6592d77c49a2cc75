// The options that organizations start with.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { faultyFetch, hanging, passed } from "tallyman-testing/faults";
import { startTallyman } from "tallyman-testing/tallyman";
import { counted, makeAuth, newMember, until } from "./support.js";

/** @type {import("tallyman-testing/tallyman").Tallyman} */
let tallyman;

before(async () => {
  tallyman = await startTallyman();
});
after(() => tallyman.remove());

function authWith(usage, { key = tallyman.key, timeout = 10_000 } = {}) {
  const fetch = faultyFetch();
  return Object.assign(makeAuth({ flushInterval: 50, tallyman: { url: tallyman.url, key, timeout, fetch }, ...usage }), { fetch });
}

const organizationOf = async (id) => (await tallyman.api("GET", `/v1/organizations/${id}`)).body;
const creations = ({ fetch }) => fetch.requests.filter(({ method }) => method === "PUT");

test("an organization starts with the options, before its first call is decided", async () => {
  await tallyman.api("PUT", "/v1/plans/pro", { features: { sso: true }, limits: { api: { limit: 5000 } } });
  const auth = authWith({ resetMode: "scheduled", resetPeriod: "weekly", resetDay: 3, defaultApiLimit: 0, defaultPlanId: "pro", enforcement: "hard" });
  const { user, organizationId } = await newMember(auth);
  assert.equal((await user.work()).status, 429);
  const { planId, resetMode, resetPeriod, resetDay, limits } = await organizationOf(organizationId);
  assert.deepEqual({ planId, resetMode, resetPeriod, resetDay }, { planId: "pro", resetMode: "scheduled", resetPeriod: "weekly", resetDay: 3 });
  assert.equal(limits.api.limit, 0);
  assert.deepEqual((await user.call("GET", "/usage-tracking/get-usage")).body.features, { sso: true });
});

test("concurrent first calls create the organization once, and further ones ask nothing", async () => {
  const auth = authWith({ defaultApiLimit: 20 });
  const { user, organizationId } = await newMember(auth);
  const statuses = await Promise.all(Array.from({ length: 50 }, async () => (await user.work()).status));
  assert.equal(statuses.filter((status) => status === 200).length, 20);
  assert.equal(await counted(tallyman, organizationId), 20);
  assert.equal(creations(auth).length, 1);
  assert.equal(creations(auth)[0].headers["if-none-match"], "*");
});

test("what an administrator has set is not overwritten, also after a restart", async () => {
  const usage = { defaultApiLimit: 5, resetPeriod: "daily" };
  const { user, organizationId } = await newMember(authWith(usage));
  await user.work();
  await tallyman.api("PATCH", `/v1/organizations/${organizationId}/limits`, { api: { limit: 7 } });
  await tallyman.api("PATCH", `/v1/organizations/${organizationId}`, { resetPeriod: "yearly" });
  user.auth = makeAuth({ ...usage, tallyman: { url: tallyman.url, key: tallyman.key, timeout: 10_000 } }, { database: user.auth.options.database });
  await user.work();
  const { limits, resetPeriod } = await organizationOf(organizationId);
  assert.deepEqual([limits.api.limit, resetPeriod], [7, "yearly"]);
  assert.equal(await counted(tallyman, organizationId), 2);
});

test("an unlimited default is unlimited, and a soft one counts overage", async () => {
  const unlimited = await newMember(authWith({ defaultApiLimit: Infinity }));
  assert.equal((await unlimited.user.work()).status, 200);
  assert.equal((await unlimited.user.call("GET", "/usage-tracking/get-usage")).body.api.limit, null);
  const soft = await newMember(authWith({ defaultApiLimit: 0, enforcement: "soft" }));
  assert.equal((await soft.user.work()).status, 200);
});

test("reading the usage of a new organization shows what it will start with", async () => {
  const { user } = await newMember(authWith({ defaultApiLimit: 42 }));
  assert.equal((await user.call("GET", "/usage-tracking/get-usage")).body.api.limit, 42);
});

test("calls that are answered while Tallyman is away do not start an organization without its options", async () => {
  for (const mode of ["exact", "async"]) {
    const auth = authWith({ mode, defaultApiLimit: 3 }, { timeout: 300 });
    const { user, organizationId } = await newMember(auth);
    auth.fetch.fault = hanging;
    for (let calls = 0; calls < 5; calls++) assert.equal((await user.work()).status, 200);
    auth.fetch.fault = passed;
    await until(async () => (await counted(tallyman, organizationId)) === 5, "5 calls counted");
    assert.equal((await organizationOf(organizationId)).limits.api.limit, 3);
  }
});

test("options that Tallyman does not take are logged, and the calls are counted", async () => {
  const auth = authWith({ defaultPlanId: "no-such-plan" });
  const { user, organizationId } = await newMember(auth);
  assert.equal((await user.work()).status, 200);
  assert.equal((await user.work()).status, 200);
  assert.equal(await counted(tallyman, organizationId), 2);
  assert.match(auth.log.join("\n"), /does not take the options of usageTracking.*no-such-plan/);
  assert.equal(creations(auth).length, 1);
});

test("a key with the scope provision suffices to count, and to start organizations", async () => {
  const { body } = await tallyman.api("POST", "/v1/api-keys", { name: "auth server", scopes: ["provision"] });
  assert.equal(typeof body.key, "string");
  const auth = authWith({ defaultApiLimit: 1 }, { key: body.key });
  const { user } = await newMember(auth);
  assert.equal((await user.work()).status, 200);
  assert.equal((await user.work()).status, 429);
  assert.equal((await user.call("GET", "/usage-tracking/get-usage")).body.api.current, 1);
  assert.deepEqual(auth.log, []);
});
