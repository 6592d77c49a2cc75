// The three reset modes, with periods that end while the tests run.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startTallyman } from "tallyman-testing/tallyman";
import { counted, makeAuth, newMember, until } from "./support.js";

/** Seconds after which the running period of an organization ends. */
const SECONDS = 3;

/** Ends periods by itself, or leaves it to reset-expired. */
let tallyman, unscheduled;

before(async () => {
  tallyman = await startTallyman();
  unscheduled = await startTallyman({ TALLYMAN_SCHEDULER: "off" });
});
after(async () => {
  await tallyman.remove();
  await unscheduled.remove();
});

/** A member who has made three calls in a period that ends in some seconds, at `end`. */
async function member(service, resetMode) {
  const told = [];
  const auth = makeAuth({
    resetMode,
    resetPeriod: "hourly",
    apiKey: "a key for cron jobs",
    tallyman: { url: service.url, key: service.key, timeout: 10_000 },
    onUsageReset: (context) => told.push(context),
  });
  const { user, organizationId } = await newMember(auth);
  for (let calls = 0; calls < 3; calls++) await user.work();
  // The running period ends where the new calendar's next one begins.
  const end = Math.ceil(Date.now() / 1000 + SECONDS) * 1000;
  const anchor = new Date(end - 3_600_000).toISOString();
  await service.api("PUT", `/v1/organizations/${organizationId}`, { resetMode, resetPeriod: "hourly", anchor });
  return { user, organizationId, end, told };
}

const over = (end) => until(() => Date.now() > end, "the end of the period");

test("lazy: the first call after the end opens the next period, and is the only one to tell", async () => {
  const { user, organizationId, end, told } = await member(tallyman, "lazy");
  await over(end);
  await Promise.all([user.work(), user.work(), user.work()]);
  assert.equal(await counted(tallyman, organizationId), 3);
  assert.equal(told.length, 1);
  const { resetDate, ...context } = told[0];
  assert.deepEqual(context, { organizationId, metricType: "api", resetType: "lazy", previousCount: 3 });
  assert.equal(resetDate.getTime(), end + 3_600_000);
  const history = await until(async () => {
    const { body } = await user.call("GET", "/usage-tracking/get-usage-history");
    return body.history.length === 1 && body.history;
  }, "the ended period in the history");
  assert.deepEqual([history[0].value, Date.parse(history[0].date)], [3, end]);
});

test("scheduled: Tallyman ends the period on time, without a call", async () => {
  const { user, organizationId, end } = await member(tallyman, "scheduled");
  await over(end);
  const reset = await until(async () => {
    const { body } = await tallyman.api("GET", `/v1/events?type=usage.reset&organizationId=${organizationId}`);
    return body.data[0];
  }, "the event");
  assert.deepEqual([reset.data.resetType, reset.data.previousCount], ["scheduled", 3]);
  assert.equal((await user.call("GET", "/usage-tracking/get-usage")).body.api.current, 0);
});

test("scheduled, without Tallyman's scheduler: reset-expired ends the period, once", async () => {
  const { user, organizationId, end, told } = await member(unscheduled, "scheduled");
  const reset = () => user.call("POST", "/usage-tracking/reset-expired", { apiKey: "a key for cron jobs" });
  await over(end);
  assert.deepEqual((await reset()).body, { success: true, resetCount: 1, organizations: [organizationId] });
  assert.deepEqual((await reset()).body.organizations, []);
  assert.deepEqual(told.map(({ resetType, previousCount }) => [resetType, previousCount]), [["scheduled", 3]]);
  await user.work();
  assert.equal((await user.call("GET", "/usage-tracking/get-usage")).body.api.current, 1);
  assert.equal(told.length, 1);
});

test("manual: a period ends by a reset alone", async () => {
  const { user, organizationId, end, told } = await member(unscheduled, "manual");
  await over(end);
  await user.call("POST", "/usage-tracking/reset-expired", { apiKey: "a key for cron jobs" });
  await user.work();
  const { api } = (await user.call("GET", "/usage-tracking/get-usage")).body;
  assert.deepEqual([api.current, api.resetDate], [4, null]);
  await user.auth.api.resetUsage({ body: { organizationId } });
  assert.equal((await user.call("GET", "/usage-tracking/get-usage")).body.api.current, 0);
  assert.deepEqual(told.map(({ resetType, previousCount }) => [resetType, previousCount]), [["manual", 4]]);
});
