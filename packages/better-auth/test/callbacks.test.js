// The callbacks: once for what happens, whichever process notices it.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startTallyman } from "tallyman-testing/tallyman";
import { counted, makeAuth, memoryDatabase, newMember, SECRET, setLimit, signed, until, User, warning } from "./support.js";

/** @type {import("tallyman-testing/tallyman").Tallyman} */
let tallyman;

before(async () => {
  tallyman = await startTallyman();
});
after(() => tallyman.remove());

/** An auth server that records its callbacks in `told`, as `[name, context]`. */
function recordingAuth(usage = {}, options = {}) {
  const told = [];
  const record = (name) => (context) => void told.push([name, context]);
  const auth = makeAuth(
    {
      tallyman: { url: tallyman.url, key: tallyman.key, timeout: 10_000 },
      onUsageWarning: record("warning"),
      onLimitExceeded: record("exceeded"),
      onUsageReset: record("reset"),
      ...usage,
    },
    options,
  );
  return Object.assign(auth, { told });
}

test("a percentage is warned of by the call that reaches it, and the limit by the first call that it refuses", async () => {
  const auth = recordingAuth();
  const { user, organizationId } = await newMember(auth);
  await setLimit(tallyman, organizationId, 5);
  for (let calls = 0; calls < 8; calls++) await user.work();
  const { resetDate, ...context } = auth.told[0][1];
  assert.ok(resetDate instanceof Date);
  assert.deepEqual(context, { organizationId, metricType: "api", current: 4, limit: 5, planId: "free", percentage: 80 });
  assert.deepEqual(auth.told.map(([name, { current, percentage }]) => [name, current, percentage]), [
    ["warning", 4, 80],
    ["warning", 5, 100],
    ["exceeded", 5, undefined],
  ]);
});

test("of two auth servers, one warns and one tells that the limit is exceeded, under concurrent calls", async () => {
  const database = memoryDatabase();
  const auths = [recordingAuth({}, { database }), recordingAuth({}, { database })];
  const { user, organizationId } = await newMember(auths[0]);
  await setLimit(tallyman, organizationId, 20);
  const calls = Array.from({ length: 50 }, (_, call) => new User(auths[call % 2], user.id, user.headers).work());
  const statuses = (await Promise.all(calls)).map(({ status }) => status);
  assert.equal(statuses.filter((status) => status === 200).length, 20);
  const told = auths.flatMap((auth) => auth.told.map(([name, { percentage = "" }]) => `${name} ${percentage}`)).sort();
  assert.deepEqual(told, ["exceeded ", "warning 100", "warning 80"]);
});

test("a soft limit tells once that it is exceeded, in async mode too", async () => {
  for (const mode of ["exact", "async"]) {
    const auth = recordingAuth({ mode, flushInterval: 3_600_000 });
    const { user, organizationId } = await newMember(auth);
    await setLimit(tallyman, organizationId, 2, "soft");
    for (let calls = 0; calls < 3; calls++) {
      await user.work();
      await user.work();
      await user.call("GET", "/usage-tracking/get-usage");
    }
    const exceeded = auth.told.filter(([name]) => name === "exceeded");
    assert.equal(exceeded.length, 1, mode);
    assert.equal(exceeded[0][1].current, mode === "exact" ? 3 : 4);
  }
});

test("a callback that fails is logged, and breaks no call", async () => {
  const failing = () => Promise.reject(new Error("no mail server"));
  const auth = recordingAuth({ onUsageWarning: failing, onLimitExceeded: failing });
  const { user, organizationId } = await newMember(auth);
  await setLimit(tallyman, organizationId, 1);
  assert.equal((await user.work()).status, 200);
  assert.equal((await user.work()).status, 429);
  assert.match(auth.log.join("\n"), /onUsageWarning failed: no mail server/);
  assert.match(auth.log.join("\n"), /onLimitExceeded failed: no mail server/);
});

async function deliver(auth, { body, headers }) {
  const response = await auth.handler(new Request("http://127.0.0.1:3000/api/auth/usage-tracking/webhook", { method: "POST", body, headers }));
  return { status: response.status, body: await response.json() };
}

test("with a webhook, calls tell nothing, and signed events do, each once for all auth servers", async () => {
  const database = memoryDatabase();
  const [auth, other] = [0, 1].map(() => recordingAuth({ webhookSecret: SECRET }, { database }));
  const { user, organizationId } = await newMember(auth);
  await setLimit(tallyman, organizationId, 1);
  await user.work();
  await user.work();
  assert.deepEqual(auth.told, []);

  const event = warning(organizationId);
  for (const receiver of [auth, other, auth]) assert.equal((await deliver(receiver, signed(event))).status, 200);
  assert.deepEqual(other.told, []);
  assert.deepEqual(auth.told, [
    ["warning", { organizationId, metricType: "api", current: 801, limit: 1000, planId: "free", resetDate: new Date("2026-12-01T00:00:00Z"), percentage: 80 }],
  ]);
});

test("each event has its callback, and other meters have none", async () => {
  const auth = recordingAuth({ webhookSecret: SECRET });
  const event = (type, data) => ({ ...warning("org_1"), type, data: { ...warning("org_1").data, ...data } });
  await deliver(auth, signed(event("usage.limit_exceeded", { threshold: 100 })));
  await deliver(auth, signed(event("usage.reset", { resetType: "scheduled", previousCount: 7 })));
  await deliver(auth, signed(event("usage.warning", { meter: "tokens" })));
  await deliver(auth, signed({ ...warning(""), type: "webhook.test", data: { webhookId: "whk_1" } }));
  assert.deepEqual(auth.told.map(([name]) => name), ["exceeded", "reset"]);
  assert.deepEqual(auth.told[1][1], {
    organizationId: "org_1",
    metricType: "api",
    resetType: "scheduled",
    previousCount: 7,
    resetDate: new Date("2026-12-01T00:00:00Z"),
  });
});

test("events that are not signed with the secret, or too old, are refused", async () => {
  const auth = recordingAuth({ webhookSecret: SECRET });
  const event = warning("org_1");
  const { body, headers } = signed(event);
  const requests = [
    signed(event, `whsec_${Buffer.from("another secret").toString("base64")}`),
    signed(event, SECRET, Math.floor(Date.now() / 1000) - 301),
    { body: body.replace("801", "802"), headers },
    { body, headers: { "content-type": "application/json" } },
  ];
  for (const request of requests) {
    const { status, body } = await deliver(auth, request);
    assert.equal(status, 401);
    assert.equal(body.code, "INVALID_WEBHOOK");
  }
  assert.equal((await deliver(recordingAuth(), signed(event))).status, 401, "without a secret");
  assert.deepEqual(auth.told, []);
});

test("calls that were answered while Tallyman was away warn when they are counted", async () => {
  const auth = recordingAuth({ flushInterval: 50 });
  const { user, organizationId } = await newMember(auth);
  await setLimit(tallyman, organizationId, 5);
  await tallyman.stop();
  for (let calls = 0; calls < 4; calls++) assert.equal((await user.work()).status, 200);
  await tallyman.start();
  await until(() => auth.told.length > 0, "the callback");
  assert.equal(await counted(tallyman, organizationId), 4);
  assert.deepEqual(auth.told.map(([name, { percentage }]) => [name, percentage]), [["warning", 80]]);
});
