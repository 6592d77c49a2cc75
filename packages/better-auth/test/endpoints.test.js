// The endpoints below /usage-tracking, and who may call them.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startTallyman } from "tallyman-testing/tallyman";
import { counted, makeAuth, memoryDatabase, newMember, setLimit, until, User } from "./support.js";

/** @type {import("tallyman-testing/tallyman").Tallyman} */
let tallyman;

before(async () => {
  tallyman = await startTallyman();
});
after(() => tallyman.remove());

/** An organization with its owner, a member, an outsider and a platform administrator. */
async function people(usage = {}) {
  const database = memoryDatabase();
  const auth = makeAuth({ tallyman: { url: tallyman.url, key: tallyman.key, timeout: 10_000 }, ...usage }, { database });
  const { user: owner, organizationId } = await newMember(auth);
  const { user: member } = await newMember(auth);
  await auth.api.addMember({ body: { organizationId, userId: member.id, role: "member" } });
  const { user: outsider } = await newMember(auth);
  const admin = await User.signUp(auth, "admin");
  database.user.find((user) => user.id === admin.id).role = "user,admin";
  const nobody = new User(auth, "", {});
  return { auth, database, organizationId, owner, member, outsider, admin, nobody };
}

const usageOf = (user, organizationId) => user.call("GET", `/usage-tracking/get-usage${organizationId ? `?organizationId=${organizationId}` : ""}`);
const answers = async (calls) => Object.fromEntries(await Promise.all(Object.entries(calls).map(async ([name, call]) => {
  const { status, body } = await call;
  return [name, status === 200 ? 200 : `${status} ${body.code}`];
})));

test("members and platform administrators read; outsiders and strangers do not", async () => {
  const { organizationId, owner, member, outsider, admin, nobody } = await people();
  const read = async (path) =>
    answers(Object.fromEntries(Object.entries({ owner, member, outsider, admin, nobody }).map(([name, user]) => [name, user.call("GET", `${path}?organizationId=${organizationId}`)])));
  const expected = { owner: 200, member: 200, outsider: "403 NOT_A_MEMBER", admin: 200, nobody: "401 UNAUTHORIZED" };
  assert.deepEqual(await read("/usage-tracking/get-usage"), expected);
  assert.deepEqual(await read("/usage-tracking/get-usage-history"), expected);
});

test("only platform administrators reset and change limits: owning an organization is not enough", async () => {
  const { organizationId, owner, member, outsider, admin, nobody } = await people();
  await owner.work();
  const write = async (path, body) =>
    answers(Object.fromEntries(Object.entries({ owner, member, outsider, admin, nobody }).map(([name, user]) => [name, user.call("POST", path, { organizationId, ...body })])));
  const expected = { owner: "403 NOT_ALLOWED", member: "403 NOT_ALLOWED", outsider: "403 NOT_ALLOWED", admin: 200, nobody: "401 UNAUTHORIZED" };
  assert.deepEqual(await write("/usage-tracking/reset", {}), expected);
  assert.deepEqual(await write("/usage-tracking/update-limits", { apiLimit: 5 }), expected);
});

test("isAdmin makes administrators, for what it is asked", async () => {
  const asked = [];
  const { organizationId, owner, outsider } = await people({
    isAdmin: async ({ user, ...rest }) => {
      asked.push(rest);
      return rest.action === "update-limits" && user.id === owner.id;
    },
  });
  const limits = { organizationId, apiLimit: 7 };
  assert.equal((await owner.call("POST", "/usage-tracking/update-limits", limits)).status, 200);
  assert.equal((await outsider.call("POST", "/usage-tracking/update-limits", limits)).status, 403);
  assert.equal((await owner.call("POST", "/usage-tracking/reset", { organizationId })).status, 403);
  assert.equal((await usageOf(outsider, organizationId)).status, 403);
  assert.deepEqual(asked.map(({ action }) => action), ["update-limits", "update-limits", "reset", "read"]);
  assert.equal(asked[0].organizationId, organizationId);
});

test("without the plugin admin, a field role gives no rights", async () => {
  const { auth, database, organizationId, admin } = await people();
  const plugins = auth.options.plugins.filter(({ id }) => id !== "admin");
  const withoutAdmin = makeAuth({ tallyman: { url: tallyman.url, key: tallyman.key } }, { database, plugins, user: { additionalFields: { role: { type: "string", required: false } } } });
  const same = new User(withoutAdmin, admin.id, admin.headers);
  assert.deepEqual((await same.call("GET", "/get-session")).body.user.role, "user,admin");
  assert.equal((await same.call("POST", "/usage-tracking/reset", { organizationId })).status, 403);
});

test("an organization that does not exist is 404 for administrators, and none at all is 400", async () => {
  const { admin, member } = await people();
  assert.deepEqual(
    await answers({
      read: usageOf(admin, "org_unknown"),
      limits: admin.call("POST", "/usage-tracking/update-limits", { organizationId: "org_unknown", apiLimit: 1 }),
      none: usageOf(admin),
      foreign: usageOf(member, "org_unknown"),
    }),
    { read: "404 ORGANIZATION_NOT_FOUND", limits: "404 ORGANIZATION_NOT_FOUND", none: "400 NO_ORGANIZATION", foreign: "403 NOT_A_MEMBER" },
  );
});

test("usage is that of the active organization by default, also before anything was counted", async () => {
  const { organizationId, owner } = await people();
  const { body } = await usageOf(owner);
  const { resetDate, ...api } = body.api;
  assert.deepEqual({ ...body, api }, { api: { current: 0, limit: 1000 }, features: null, planId: "free", resetMode: "lazy", resetPeriod: "monthly" });
  assert.ok(Date.parse(resetDate) > Date.now());
  await owner.work();
  await setLimit(tallyman, organizationId, null);
  await tallyman.api("PATCH", `/v1/organizations/${organizationId}`, { resetMode: "manual", features: { sso: true } });
  assert.deepEqual((await usageOf(owner)).body, {
    api: { current: 1, limit: null, resetDate: null },
    features: { sso: true },
    planId: "free",
    resetMode: "manual",
    resetPeriod: "monthly",
  });
});

test("updateLimits is effective for the next call, and changes only what is given", async () => {
  const { organizationId, owner, admin } = await people();
  const update = (changes) => admin.call("POST", "/usage-tracking/update-limits", { organizationId, ...changes });
  assert.deepEqual((await update({ apiLimit: 1 })).body, { success: true });
  assert.equal((await owner.work()).status, 200);
  assert.equal((await owner.work()).status, 429);
  await update({ enforcement: "soft" });
  assert.equal((await owner.work()).status, 200);
  await update({ apiLimit: 0, enforcement: "hard" });
  assert.equal((await owner.work()).status, 429);
  await update({ apiLimit: null });
  assert.equal((await owner.work()).status, 200);
  await update({ resetMode: "scheduled", resetPeriod: "daily" });
  const { body } = await tallyman.api("GET", `/v1/organizations/${organizationId}`);
  assert.deepEqual([body.resetMode, body.resetPeriod, body.limits.api.limit], ["scheduled", "daily", null]);
});

test("invalid values are 400 and change nothing", async () => {
  const { organizationId, owner, admin } = await people();
  for (const changes of [{ apiLimit: -1 }, { apiLimit: 1.5 }, { apiLimit: "5" }, { resetPeriod: "fortnightly" }, { enforcement: "none" }]) {
    assert.equal((await admin.call("POST", "/usage-tracking/update-limits", { organizationId, ...changes })).status, 400, JSON.stringify(changes));
  }
  for (const query of ["limit=0", "limit=many", "granularity=century"]) {
    assert.equal((await owner.call("GET", `/usage-tracking/get-usage-history?${query}`)).status, 400, query);
  }
  assert.equal((await usageOf(owner)).body.api.limit, 1000);
});

test("a reset starts a period at 0, and the one that it ends is history", async () => {
  const told = [];
  const { organizationId, owner, admin } = await people({ onUsageReset: (context) => told.push(context) });
  for (let calls = 0; calls < 3; calls++) await owner.work();
  assert.deepEqual((await admin.call("POST", "/usage-tracking/reset", { organizationId, resetApi: false })).body, { success: true });
  assert.equal(await counted(tallyman, organizationId), 3);
  assert.deepEqual((await admin.call("POST", "/usage-tracking/reset", { organizationId })).body, { success: true });
  assert.equal((await usageOf(owner)).body.api.current, 0);
  await owner.work();
  const history = await until(async () => {
    const { body } = await owner.call("GET", "/usage-tracking/get-usage-history");
    return body.history.length > 0 && body.history;
  }, "the period in the history");
  assert.deepEqual(history.map(({ organizationId, metricType, value }) => ({ organizationId, metricType, value })), [{ organizationId, metricType: "api", value: 3 }]);
  assert.ok(Date.parse(history[0].date) <= Date.now() && Date.parse(history[0].createdAt) <= Date.now());
  const { resetDate, ...context } = told[0];
  assert.deepEqual(context, { organizationId, metricType: "api", resetType: "manual", previousCount: 3 });
  assert.ok(resetDate instanceof Date);
  assert.equal(told.length, 1, "the first call after a reset is not a reset of its own");
});

test("history by hour and by day includes the running one, newest first", async () => {
  const { organizationId, owner } = await people();
  const yesterday = new Date(Date.now() - 86_400_000).toISOString();
  await tallyman.api("POST", "/v1/track", { organizationId, amount: 5, timestamp: yesterday });
  await owner.work();
  const historyOf = async (query) => (await owner.call("GET", `/usage-tracking/get-usage-history?${query}`)).body.history;
  const days = await until(async () => {
    const days = await historyOf("granularity=day&limit=7");
    return days.length === 2 && days;
  }, "both days");
  assert.deepEqual(days.map(({ value }) => value), [1, 5]);
  assert.deepEqual((await historyOf("granularity=hour&limit=2")).map(({ value }) => value), [1]);
  assert.equal(new Set(days.map(({ id }) => id)).size, 2);
});

test("reset-expired takes only the API key, and refuses everybody if there is none", async () => {
  const { nobody } = await people({ apiKey: "a key for cron jobs" });
  const reset = (user, body) => user.call("POST", "/usage-tracking/reset-expired", body);
  assert.deepEqual((await reset(nobody, { apiKey: "a key for cron jobs" })).body, { success: true, resetCount: 0, organizations: [] });
  const { nobody: other } = await people();
  assert.deepEqual(
    await answers({
      wrong: reset(nobody, { apiKey: "another key" }),
      empty: reset(nobody, { apiKey: "" }),
      missing: reset(nobody, {}),
      unset: reset(other, { apiKey: "" }),
    }),
    { wrong: "401 INVALID_API_KEY", empty: "401 INVALID_API_KEY", missing: "400 VALIDATION_ERROR", unset: "401 INVALID_API_KEY" },
  );
});

test("the server itself may do everything, without a session", async () => {
  const { auth, organizationId, owner } = await people();
  await owner.work();
  await auth.api.updateLimits({ body: { organizationId, apiLimit: 9 } });
  assert.equal((await auth.api.getUsage({ query: { organizationId } })).api.limit, 9);
  assert.deepEqual(await auth.api.resetUsage({ body: { organizationId } }), { success: true });
  assert.deepEqual((await auth.api.getUsageHistory({ query: { organizationId } })).history.slice(1), []);
  await assert.rejects(auth.api.getUsage({ headers: new Headers(), query: { organizationId } }), ({ status }) => status === "UNAUTHORIZED");
});
