// What happens while Tallyman does not answer, and afterwards.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { faultyFetch, hanging, lost, passed, refused, unavailable } from "tallyman-testing/faults";
import { startTallyman } from "tallyman-testing/tallyman";
import { makeAuth, newMember, setLimit, until } from "./support.js";

/** @type {import("tallyman-testing/tallyman").Tallyman} */
let tallyman;

before(async () => {
  tallyman = await startTallyman();
});
after(() => tallyman.remove());

/** A member of an organization that Tallyman has counted once, and the `fetch` of the auth server. */
async function member(usage = {}, { timeout = 300 } = {}) {
  const fetch = faultyFetch();
  const auth = makeAuth({ flushInterval: 50, tallyman: { url: tallyman.url, key: tallyman.key, timeout, fetch }, ...usage });
  const { user, organizationId } = await newMember(auth);
  await setLimit(tallyman, organizationId, null);
  await tallyman.api("POST", "/v1/track", { organizationId });
  return { user, organizationId, fetch, log: auth.log };
}

/** The count as the plugin reports it, after everything that waited was sent; undefined while Tallyman is away. */
async function settled(user) {
  const { status, body } = await user.call("GET", "/usage-tracking/get-usage");
  return status === 200 ? body.api.current : undefined;
}

/** As {@link hanging}, and deaf to the signal that ends it. */
const deaf = () => new Promise(() => {});

test("while Tallyman hangs, one call waits for it and the next do not; all are counted afterwards", async () => {
  const { user, fetch, log } = await member();
  fetch.fault = deaf;
  const durations = [];
  for (let calls = 0; calls < 10; calls++) {
    const start = performance.now();
    assert.equal((await user.work()).status, 200);
    durations.push(performance.now() - start);
  }
  const [first, ...others] = durations;
  // With some time for the rest of a call, on a loaded machine.
  assert.ok(first >= 300 && first < 800, `the first call took ${first} ms`);
  assert.ok(others.toSorted((a, b) => a - b)[4] < 150, `the other calls took ${others} ms`);
  assert.match(log.join("\n"), /Tallyman does not answer, and calls do not wait for it: .*no answer within 300 ms/);
  fetch.fault = passed;
  assert.equal(await until(async () => (await settled(user)) === 11, "11 calls counted"), true);
  assert.match(log.join("\n"), /Tallyman answers again/);
});

test("three refused connections open the breaker, which closes when Tallyman is back", async () => {
  const { user, fetch } = await member();
  fetch.fault = refused;
  for (let calls = 0; calls < 3; calls++) assert.equal((await user.work()).status, 200);
  const asked = fetch.requests.filter(({ path }) => path === "/v1/consume").length;
  assert.ok(asked >= 3, `${asked} requests`);
  for (let calls = 0; calls < 20; calls++) assert.equal((await user.work()).status, 200);
  assert.equal(fetch.requests.filter(({ path }) => path === "/v1/consume").length, asked, "an open breaker asks nothing");
  fetch.fault = passed;
  await until(async () => (await settled(user)) === 24, "24 calls counted");
  await user.work();
  assert.equal(fetch.requests.at(-1).path, "/v1/consume");
  await until(async () => (await settled(user)) === 25, "25 calls counted");
});

test("a call whose answer was lost is counted once", async () => {
  const { user, fetch } = await member({}, { timeout: 5_000 });
  // The client repeats it once by itself.
  fetch.next(lost, lost);
  assert.equal((await user.work()).status, 200);
  await until(async () => (await settled(user)) === 2, "both calls counted");
  const keys = fetch.requests.flatMap(({ path, headers, body }) =>
    path === "/v1/batch" ? body.items.map((item) => item.idempotencyKey) : path === "/v1/consume" ? [headers["idempotency-key"]] : [],
  );
  assert.equal(keys.length, 3);
  assert.equal(new Set(keys).size, 1);
});

test("a batch whose answer was lost is counted once", async () => {
  const { user, fetch } = await member({ mode: "async", flushInterval: 3_600_000 }, { timeout: 10_000 });
  for (let calls = 0; calls < 7; calls++) await user.work();
  fetch.next(lost);
  assert.equal(await settled(user), 8, "the batch was executed");
  assert.equal(await settled(user), 8);
  const [first, second, ...others] = fetch.requests.filter(({ path }) => path === "/v1/batch").map(({ body }) => body.items);
  assert.deepEqual([second, others], [first, []]);
});

test("calls that were answered beyond the limit while Tallyman was away are counted all the same", async () => {
  const { user, organizationId, fetch } = await member({}, { timeout: 2_000 });
  await setLimit(tallyman, organizationId, 1);
  fetch.fault = hanging;
  for (let calls = 0; calls < 3; calls++) assert.equal((await user.work()).status, 200);
  fetch.fault = passed;
  await until(async () => (await settled(user)) === 4, "4 calls counted");
  assert.equal((await user.work()).status, 429);
});

test("a Tallyman that is stopped and started again has every call, each once", async () => {
  const own = await startTallyman();
  try {
    const auth = makeAuth({ flushInterval: 50, tallyman: { url: own.url, key: own.key, timeout: 2_000 } });
    const { user } = await newMember(auth);
    for (let calls = 0; calls < 5; calls++) assert.equal((await user.work()).status, 200);
    await own.stop();
    for (let calls = 0; calls < 20; calls++) assert.equal((await user.work()).status, 200);
    assert.equal((await user.call("GET", "/usage-tracking/get-usage")).status, 503);
    await own.start();
    await until(async () => (await settled(user)) === 25, "25 calls counted");
  } finally {
    await own.remove();
  }
});

test("with whenUnavailable refuse, calls are 503 and are not counted later, except those that are never refused", async () => {
  const { user, fetch } = await member({ whenUnavailable: "refuse" }, { timeout: 2_000 });
  fetch.fault = hanging;
  const { status, headers, body } = await user.work();
  assert.equal(status, 503);
  assert.equal(body.code, "USAGE_UNAVAILABLE");
  assert.equal(headers.get("retry-after"), "1");
  assert.equal((await user.work()).status, 503);
  assert.equal((await user.call("GET", "/organization/list")).status, 200);
  fetch.fault = passed;
  await until(async () => (await settled(user)) === 2, "the first call and the list counted");
  await until(async () => (await user.work()).status === 200, "calls answered again");
});

test("whenUnavailable may decide by the call", async () => {
  const { user, organizationId, fetch } = await member({
    whenUnavailable: (call) => (call.path === "/organization/list-members" && call.organizationId === organizationId ? "refuse" : "allow"),
  });
  fetch.fault = hanging;
  assert.equal((await user.work()).status, 200);
  assert.equal((await user.call("GET", "/organization/list-members")).status, 503);
});

test("a service that cannot work counts as unavailable", async () => {
  const { user, fetch } = await member();
  fetch.fault = unavailable();
  for (let calls = 0; calls < 5; calls++) assert.equal((await user.work()).status, 200);
  assert.equal((await user.call("GET", "/usage-tracking/get-usage")).body.code, "USAGE_UNAVAILABLE");
  fetch.fault = passed;
  await until(async () => (await settled(user)) === 6, "6 calls counted");
});

test("without a URL or with a wrong key, calls are answered and the log says what to do", async () => {
  const unconfigured = makeAuth({ tallyman: { url: "", key: "" } });
  const { user } = await newMember(unconfigured);
  assert.equal((await user.work()).status, 200);
  assert.match(unconfigured.log.join("\n"), /calls are not counted: .*set TALLYMAN_URL/);
  assert.equal((await user.call("GET", "/usage-tracking/get-usage")).status, 503);

  const wrongKey = makeAuth({ tallyman: { url: tallyman.url, key: "tm_wrong", timeout: 5_000 } });
  const { user: other } = await newMember(wrongKey);
  for (let calls = 0; calls < 4; calls++) assert.equal((await other.work()).status, 200);
  assert.match(wrongKey.log.join("\n"), /Tallyman does not answer.*401 unauthenticated/);
});
