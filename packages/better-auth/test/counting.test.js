// Which calls are counted, and which are refused.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startTallyman } from "tallyman-testing/tallyman";
import { counted, makeAuth, memoryDatabase, newMember, setLimit, User } from "./support.js";

/** @type {import("tallyman-testing/tallyman").Tallyman} */
let tallyman;
/** An auth server whose calls wait as long as a loaded machine needs. */
const authWith = (usage = {}, options = {}) => makeAuth({ tallyman: { url: tallyman.url, key: tallyman.key, timeout: 10_000 }, ...usage }, options);

before(async () => {
  tallyman = await startTallyman();
});
after(() => tallyman.remove());

test("calls of a session with an active organization are counted, failed ones included", async () => {
  const { user, organizationId } = await newMember(authWith());
  assert.equal((await user.work()).status, 200);
  assert.equal((await user.call("POST", "/organization/update", { organizationId: "another", data: {} })).status, 400);
  assert.equal((await user.call("GET", "/no-such-endpoint")).status, 404);
  assert.equal(await counted(tallyman, organizationId), 2, "what is no endpoint is not counted");
});

test("calls that clients make by themselves, and those of the plugin, are not counted", async () => {
  const { user, organizationId } = await newMember(authWith());
  await user.work();
  for (const path of ["/get-session", "/ok", "/error", "/usage-tracking/get-usage", "/usage-tracking/get-usage-history"]) {
    assert.equal((await user.call("GET", path)).status, 200, path);
  }
  assert.equal(await counted(tallyman, organizationId), 1);
});

test("paths match exactly: list-members is counted although list is a prefix of it", async () => {
  const { user, organizationId } = await newMember(authWith());
  await setLimit(tallyman, organizationId, 1);
  assert.equal((await user.call("GET", "/organization/list-members")).status, 200);
  assert.equal((await user.call("GET", "/organization/list-members")).status, 429);
  assert.equal((await user.call("GET", "/organization/list")).status, 200);
  assert.equal(await counted(tallyman, organizationId), 2);
});

test("calls without a session, or without an active organization, are not counted and not refused", async () => {
  const auth = authWith();
  const alone = await User.signUp(auth, "alone");
  assert.equal((await alone.call("GET", "/organization/list")).status, 200);
  assert.equal((await new User(auth, "", {}).call("GET", "/organization/list")).status, 401);
  const { body } = await tallyman.api("GET", "/v1/organizations?search=alone");
  assert.deepEqual(body.data, []);
});

test("calls of auth.api are counted only if countServerCalls is set", async () => {
  const database = memoryDatabase();
  const { user, organizationId } = await newMember(authWith({}, { database }));
  const query = { query: { organizationId }, headers: new Headers(user.headers) };
  await user.work();
  await user.auth.api.getFullOrganization(query);
  assert.equal(await counted(tallyman, organizationId), 1);
  const counting = authWith({ countServerCalls: true }, { database });
  await counting.api.getFullOrganization(query);
  assert.equal(await counted(tallyman, organizationId), 2);
});

test("sessions of bearer tokens are counted", async () => {
  const { user, organizationId } = await newMember(authWith());
  const token = decodeURIComponent(user.headers.cookie.split("=")[1]);
  const bearer = new User(user.auth, user.id, { authorization: `Bearer ${token}` });
  assert.equal((await bearer.work()).status, 200);
  await setLimit(tallyman, organizationId, 1);
  assert.equal((await bearer.work()).status, 429);
  assert.equal(await counted(tallyman, organizationId), 1);
});

test("a request that passes several endpoints counts once", async () => {
  const { user, organizationId } = await newMember(authWith());
  const request = new Request("http://127.0.0.1:3000/api/auth/organization/list", { headers: user.headers });
  for (let passes = 0; passes < 2; passes++) {
    await user.auth.api.listOrganizations({ request, headers: request.headers });
  }
  assert.equal(await counted(tallyman, organizationId), 1);
});

test("a refused call is 429 with the count, the limit and Retry-After", async () => {
  const { user, organizationId } = await newMember(authWith());
  await setLimit(tallyman, organizationId, 1);
  await user.work();
  const { status, headers, body } = await user.work();
  assert.equal(status, 429);
  const { resetDate, message, ...rest } = body;
  assert.deepEqual(rest, { code: "API_LIMIT_EXCEEDED", organizationId, current: 1, limit: 1 });
  assert.equal(typeof message, "string");
  const seconds = (Date.parse(resetDate) - Date.now()) / 1000;
  assert.ok(Math.abs(Number(headers.get("retry-after")) - seconds) < 10, `${headers.get("retry-after")} is not ${seconds}`);
  assert.equal(await counted(tallyman, organizationId), 1);
});

test("a refused call has no Retry-After where waiting does not help", async () => {
  const { user, organizationId } = await newMember(authWith());
  await setLimit(tallyman, organizationId, 0);
  await tallyman.api("PATCH", `/v1/organizations/${organizationId}`, { resetMode: "manual" });
  const { status, headers, body } = await user.work();
  assert.deepEqual([status, headers.get("retry-after"), body.resetDate], [429, null, null]);
});

test("50 concurrent calls at a limit of 20 are answered 20 times", async () => {
  const { user, organizationId } = await newMember(authWith());
  await setLimit(tallyman, organizationId, 20);
  const statuses = await Promise.all(Array.from({ length: 50 }, async () => (await user.work()).status));
  assert.equal(statuses.filter((status) => status === 200).length, 20);
  assert.equal(statuses.filter((status) => status === 429).length, 30);
  assert.equal(await counted(tallyman, organizationId), 20);
});

test("beyond the limit, users still sign out, list and change organizations, and what the application names", async () => {
  const { user, organizationId } = await newMember(authWith({ neverRefuse: ["/organization/get-full-organization"] }));
  await setLimit(tallyman, organizationId, 0);
  assert.equal((await user.call("GET", "/organization/list-members")).status, 429);
  assert.equal((await user.work()).status, 200);
  assert.equal((await user.call("GET", "/organization/list")).status, 200);
  assert.equal((await user.call("POST", "/organization/set-active", { organizationId })).status, 200);
  assert.equal((await user.call("POST", "/revoke-other-sessions", {})).status, 200);
  assert.equal((await user.call("POST", "/sign-out", {})).status, 200);
  assert.equal(await counted(tallyman, organizationId), 5);
});

test("a soft limit refuses nothing, and what exceeds it is overage", async () => {
  const { user, organizationId } = await newMember(authWith());
  await setLimit(tallyman, organizationId, 2, "soft");
  for (let call = 0; call < 5; call++) assert.equal((await user.work()).status, 200);
  const { body } = await tallyman.api("GET", `/v1/organizations/${organizationId}/usage`);
  assert.equal(body.meters.api.current, 5);
  assert.equal(body.meters.api.overage, 3);
});

test("amount weighs calls, 0 is not counted, and what is no amount counts as 1 and is logged", async () => {
  const amounts = { "/organization/list": 5, "/organization/list-members": 0, "/organization/get-full-organization": -1 };
  const { user, organizationId } = await newMember(authWith({ amount: ({ path, method }) => (method === "GET" ? amounts[path] : NaN) }));
  await user.call("GET", "/organization/list");
  assert.equal(await counted(tallyman, organizationId), 5);
  await user.call("GET", "/organization/list-members");
  assert.equal(await counted(tallyman, organizationId), 5);
  await user.work();
  assert.equal(await counted(tallyman, organizationId), 6);
  assert.match(user.auth.log.join("\n"), /amount must be an integer from 0; got -1/);
});

test("another meter may be counted", async () => {
  const { user, organizationId } = await newMember(authWith({ meter: "auth_calls" }));
  await user.work();
  assert.equal(await counted(tallyman, organizationId, "auth_calls"), 1);
  assert.equal((await user.call("GET", "/usage-tracking/get-usage")).body.api.current, 1);
});

test("invalid options are named when the plugin is made", () => {
  assert.throws(() => authWith({ defaultApiLimit: -1 }), /defaultApiLimit must be an integer from 0/);
  assert.throws(() => authWith({ flushInterval: 0.5 }), /flushInterval must be an integer from 1/);
  assert.throws(() => authWith({ neverRefuse: ["organization/list"] }), /begins with "\/"; got "organization\/list"/);
});
