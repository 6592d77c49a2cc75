import assert from "node:assert/strict";
import { after, test } from "node:test";

import { faultyFetch, hanging, held, lost, passed, refused, unavailable } from "tallyman-testing/faults";
import { startTallyman } from "tallyman-testing/tallyman";

import { createTallyman } from "./support.js";

const service = await startTallyman();
after(() => service.remove());

/** A client whose first request waits, so that what follows shares the second. */
function busyClient(options = {}) {
  const fetch = faultyFetch();
  const tallyman = createTallyman({ ...service, fetch, ...options });
  const first = held();
  fetch.next(first);
  const busy = tallyman.consume({ organizationId: "busy" });
  return { fetch, tallyman, release: () => (first.release(), busy) };
}

const paths = (fetch) => fetch.requests.map(({ path }) => path);
const current = async (id) => (await createTallyman(service).usage(id)).meters.api.current;

test("a lone call goes at once, to its own operation", async () => {
  const fetch = faultyFetch();
  const tallyman = createTallyman({ ...service, fetch });
  const call = tallyman.track({ organizationId: "lone" });
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(paths(fetch), ["/v1/track"]);
  await call;
});

test("calls that are made while a request is in flight share the next, each with its own result", async () => {
  const { fetch, tallyman, release } = busyClient();
  const calls = [
    tallyman.consume({ organizationId: "a", amount: 2 }),
    tallyman.track({ organizationId: "b", meters: { api: 1, tokens: 5 } }, { idempotencyKey: "mine" }),
    tallyman.consume({ organizationId: "a", amount: 3 }),
  ];
  await release();
  const [first, second, third] = await Promise.all(calls);
  assert.deepEqual(paths(fetch), ["/v1/consume", "/v1/batch"]);
  const { items } = fetch.requests[1].body;
  assert.deepEqual(items.map(({ op }) => op), ["consume", "track", "consume"]);
  assert.equal(items[1].idempotencyKey, "mine");
  assert.equal(new Set(items.map(({ idempotencyKey }) => idempotencyKey)).size, 3);
  assert.equal(first.current, 2);
  assert.equal(second.meters.tokens.current, 5);
  assert.equal(third.current, 5);
});

test("the result or error of a call in a shared request is that of the call alone", async () => {
  const bodies = [
    { organizationId: "alike" },
    { organizationId: "alike", meters: { api: 1, tokens: 2 } },
    { organizationId: "alike", amount: 1000 },
    { organizationId: "alike", amount: 0 },
    { organizationId: "alike", unknown: 1 },
    { organizationId: "/" },
    {},
  ];
  const admin = createTallyman(service);
  await admin.putOrganization("alike", {});
  await admin.patchLimits("alike", { api: { limit: 10 } });
  // Without what differs between two requests, and between two periods.
  const settled = async (calls) =>
    (await Promise.allSettled(calls)).map(({ value, reason }) => {
      if (value) return JSON.parse(JSON.stringify(value).replace(/"periodStart":"[^"]*",?/g, ""));
      const { code, status, errors, message } = reason;
      return { code, status, pointer: errors[0].pointer, message: message.replace(/known are .*/, "") };
    });

  const alone = createTallyman({ ...service, coalesce: false });
  const lone = [];
  for (const body of bodies) lone.push(...(await settled([alone.consume(body)])));
  await admin.reset("alike");
  const { fetch, tallyman, release } = busyClient();
  const shared = settled(bodies.map((body) => tallyman.consume(body)));
  await release();
  assert.deepEqual(await shared, lone);
  assert.equal(fetch.requests[1].body.items.length, bodies.length);
  assert.deepEqual(lone.map(({ allowed, status }) => status ?? allowed), [true, true, false, 400, 400, 400, 400]);
});

test("a call that cannot be sent fails alone", async () => {
  const { tallyman, release } = busyClient();
  const good = tallyman.track({ organizationId: "good" });
  const bad = assert.rejects(tallyman.track({ organizationId: "good", amount: 1n }), TypeError);
  const large = assert.rejects(tallyman.track({ organizationId: "x".repeat(20_000) }), { status: 400 });
  await release();
  assert.equal((await good).current, 1);
  await bad;
  await large;
});

test("a shared request whose response is lost counts once", async () => {
  const { fetch, tallyman, release } = busyClient();
  fetch.next(lost, refused);
  const calls = [1, 2, 3].map((amount) => tallyman.track({ organizationId: "lost", amount }));
  await release();
  const results = await Promise.all(calls);
  assert.ok(results.every((result) => result.replayed));
  assert.deepEqual(paths(fetch).slice(1), ["/v1/batch", "/v1/batch", "/v1/batch"]);
  assert.equal(await current("lost"), 6);
});

test("of a shared request, what the service could not decide is retried, and nothing else", async () => {
  const { fetch, tallyman, release } = busyClient();
  fetch.next(async (send) => {
    const summary = await (await send()).json();
    summary.results[1] = { index: 1, status: 504, code: "outcome_unknown", title: "", type: "", detail: "the counter store did not reply" };
    return Response.json(summary);
  });
  const calls = ["u", "v", "w"].map((organizationId) => tallyman.track({ organizationId }));
  await release();
  const results = await Promise.all(calls);
  assert.deepEqual(results.map(({ replayed }) => replayed ?? false), [false, true, false]);
  assert.deepEqual(paths(fetch), ["/v1/consume", "/v1/batch", "/v1/track"]);
  assert.equal(fetch.requests[2].headers["idempotency-key"], fetch.requests[1].body.items[1].idempotencyKey);
  assert.equal(await current("v"), 1);
});

test("a shared request that fails for good fails all its calls, and the next go on", async () => {
  const { fetch, tallyman, release } = busyClient({ retries: 1 });
  fetch.next(unavailable(), unavailable());
  const calls = ["a", "b"].map((organizationId) => tallyman.track({ organizationId }));
  await release();
  for (const { reason } of await Promise.allSettled(calls)) assert.equal(reason.code, "overloaded");
  assert.equal((await tallyman.track({ organizationId: "after" })).current, 1);
});

test("a call that is given up while it waits is not sent", async () => {
  const { fetch, tallyman, release } = busyClient();
  const controller = new AbortController();
  const given = assert.rejects(tallyman.track({ organizationId: "given" }, { signal: controller.signal }), { code: "aborted" });
  const other = tallyman.track({ organizationId: "other" });
  controller.abort();
  await given;
  await release();
  await other;
  assert.deepEqual(fetch.requests.slice(1).map(({ path, body }) => [path, body.organizationId]), [["/v1/track", "other"]]);
});

test("a shared request is ended when nobody waits for it any more", async () => {
  const { fetch, tallyman, release } = busyClient();
  let ended = 0;
  fetch.next((send, init) => (init.signal.addEventListener("abort", () => ended++), hanging(send, init)));
  const [one, two] = [new AbortController(), new AbortController()];
  const calls = [one, two].map(({ signal }) => tallyman.track({ organizationId: "nobody" }, { signal }));
  await release();
  one.abort();
  await assert.rejects(calls[0], { code: "aborted" });
  assert.equal(ended, 0);
  two.abort();
  await assert.rejects(calls[1], { code: "aborted" });
  assert.equal(ended, 1);
});

test("a request that hangs holds up the next ones for a moment only", async () => {
  const fetch = faultyFetch();
  fetch.next(hanging);
  const tallyman = createTallyman({ ...service, fetch });
  const controller = new AbortController();
  const hung = tallyman.track({ organizationId: "hung" }, { signal: controller.signal });
  await Promise.all([tallyman.track({ organizationId: "next" }), tallyman.track({ organizationId: "next" })]);
  controller.abort();
  await assert.rejects(hung, { code: "aborted" });
});

test("shared requests stay below the size from which the service makes batches wait", async () => {
  const { fetch, tallyman, release } = busyClient();
  const calls = Array.from({ length: 1000 }, (_, i) => tallyman.track({ organizationId: `organization-with-a-long-name-${i % 7}` }));
  await release();
  await Promise.all(calls);
  const sizes = fetch.requests.slice(1).map(({ body }) => JSON.stringify(body).length);
  assert.ok(sizes.every((size) => size <= 16 * 1024), String(sizes));
  assert.ok(sizes.length < 20);
  assert.equal(await current("organization-with-a-long-name-0"), 143);
});

test("without coalesce each call has a request of its own", async () => {
  const fetch = faultyFetch();
  const tallyman = createTallyman({ ...service, fetch, coalesce: false });
  await Promise.all(Array.from({ length: 5 }, () => tallyman.track({ organizationId: "own" })));
  assert.deepEqual(paths(fetch), Array(5).fill("/v1/track"));
});

test("random concurrent calls are counted exactly, whatever happens to their responses", async () => {
  const seed = Math.floor(Math.random() * 2 ** 31);
  const random = generator(seed);
  const pick = (values) => values[Math.floor(random() * values.length)];
  const fetch = Object.assign(faultyFetch(), { fault: (...given) => pick([...Array(12).fill(passed), lost, refused, unavailable()])(...given) });
  // Enough attempts that none is the last.
  const clients = [true, false].map((coalesce) => createTallyman({ ...service, fetch, coalesce, retries: 12, timeout: 600_000 }));
  const organizations = ["r1", "r2", "r3"];
  const admin = createTallyman(service);
  for (const id of organizations) await admin.putOrganization(id, {}), await admin.patchLimits(id, { api: { limit: 300 } });

  const counted = Object.fromEntries(organizations.map((id) => [id, 0]));
  await Promise.all(Array.from({ length: 300 }, async () => {
    await new Promise((resolve) => setTimeout(resolve, random() * 300));
    const [organizationId, amount, op] = [pick(organizations), 1 + Math.floor(random() * 9), pick(["track", "consume", "consume"])];
    const result = await pick(clients)[op]({ organizationId, amount });
    if (op === "track" || result.allowed) counted[organizationId] += amount;
  }));
  for (const id of organizations) assert.equal(await current(id), counted[id], `${id}, seed ${seed}`);
});

/** Mulberry32. */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
