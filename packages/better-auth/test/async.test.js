// The async mode: calls are counted in memory, and the counts are sent at intervals.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { faultyFetch } from "tallyman-testing/faults";
import { startTallyman } from "tallyman-testing/tallyman";
import { counted, makeAuth, newMember, setLimit, until } from "./support.js";

/** @type {import("tallyman-testing/tallyman").Tallyman} */
let tallyman;

before(async () => {
  tallyman = await startTallyman();
});
after(() => tallyman.remove());

/** Members of as many organizations, and the `fetch` of their auth server. */
async function members(number, usage = {}, options = {}) {
  const fetch = faultyFetch();
  const auth = makeAuth({ mode: "async", tallyman: { url: tallyman.url, key: tallyman.key, timeout: 10_000, fetch }, ...usage }, options);
  const members = [];
  for (let made = 0; made < number; made++) members.push(await newMember(auth));
  return { members, fetch };
}

const batches = (fetch) => fetch.requests.filter(({ path }) => path === "/v1/batch").map(({ body }) => body.items);

test("calls ask nothing, and a flush sends one count for each organization", async () => {
  const { members: both, fetch } = await members(2, { flushInterval: 3_600_000 });
  for (let calls = 0; calls < 5; calls++) for (const { user } of both) await user.work();
  await both[0].user.work();
  assert.deepEqual(fetch.requests, []);
  await both[0].user.call("GET", "/usage-tracking/get-usage");
  const counts = batches(fetch).map((items) => items.map(({ op, organizationId, amount }) => [op, organizationId, amount]));
  assert.deepEqual(counts, [[["track", both[0].organizationId, 6], ["track", both[1].organizationId, 5]]]);
  assert.equal(await counted(tallyman, both[1].organizationId), 5);
});

test("counts are flushed at intervals", async () => {
  const { members: [{ user, organizationId }] } = await members(1, { flushInterval: 50 });
  for (const calls of [3, 6]) {
    for (let call = 0; call < 3; call++) await user.work();
    await until(async () => (await counted(tallyman, organizationId)) === calls, `${calls} calls counted`);
  }
});

test("reading the usage flushes first, so that users see their own calls", async () => {
  const { members: [{ user }] } = await members(1, { flushInterval: 3_600_000 });
  await Promise.all(Array.from({ length: 40 }, () => user.work()));
  assert.equal((await user.call("GET", "/usage-tracking/get-usage")).body.api.current, 40);
});

test("the limit is enforced after a flush, and lifted as soon as there is more", async () => {
  const { members: [{ user, organizationId }] } = await members(1, { flushInterval: 3_600_000 });
  await setLimit(tallyman, organizationId, 3);
  const flush = () => user.call("GET", "/usage-tracking/get-usage");
  for (let calls = 0; calls < 5; calls++) assert.equal((await user.work()).status, 200);
  await flush();
  const { status, body } = await user.work();
  assert.equal(status, 429);
  assert.equal(body.current, 5);
  assert.equal((await user.call("GET", "/organization/list")).status, 200, "what is never refused");
  await setLimit(tallyman, organizationId, 10);
  for (let calls = 0; calls < 2; calls++) assert.equal((await user.work()).status, 200);
  await flush();
  assert.equal(await counted(tallyman, organizationId), 8);
});

test("with a handler for background tasks, each request hands it a flush", async () => {
  const tasks = [];
  const options = { advanced: { backgroundTasks: { handler: (task) => tasks.push(task) } } };
  const { members: [{ user, organizationId }] } = await members(1, { flushInterval: 3_600_000 }, options);
  const before = tasks.length;
  await user.work();
  await user.work();
  assert.equal(tasks.length - before, 2);
  await Promise.all(tasks);
  assert.equal(await counted(tallyman, organizationId), 2);
});

test("a process that ends by itself sends its counts first", async () => {
  const program = `
    import { makeAuth, newMember } from "./support.js";
    const tallyman = { url: process.env.TALLYMAN_URL, key: process.env.TALLYMAN_API_KEY, timeout: 10_000 };
    const { user, organizationId } = await newMember(makeAuth({ mode: "async", flushInterval: 3_600_000, tallyman }));
    for (let calls = 0; calls < 3; calls++) await user.work();
    console.log(organizationId);`;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", program], {
    cwd: fileURLToPath(new URL(".", import.meta.url)),
    env: { ...process.env, TALLYMAN_URL: tallyman.url, TALLYMAN_API_KEY: tallyman.key },
    stdio: ["ignore", "pipe", "inherit"],
  });
  let output = "";
  child.stdout.on("data", (data) => (output += data));
  assert.deepEqual(await once(child, "close"), [0, null]);
  assert.equal(await counted(tallyman, output.trim()), 3);
});
