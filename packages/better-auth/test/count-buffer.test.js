// What waits to be counted, against a Tallyman that answers what the test says.

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { TallymanError } from "@tallyman/client";
import { CircuitBreaker } from "../dist/breaker.js";
import { CountBuffer } from "../dist/count-buffer.js";

const counted = ({ organizationId, amount }, index) => ({ index, status: 200, organizationId, amount, current: amount });
const problem = (status, code) => (_, index) => ({ index, status, code, detail: "as the test says" });

/** A buffer, the batches that it sent, what it logged, and the `answer` to each item. */
function bufferWith(answer = counted) {
  const sent = [];
  const errors = [];
  const results = [];
  const service = { answer };
  const buffer = new CountBuffer({
    tallyman: {
      batch: async (items) => {
        sent.push(items);
        return { results: items.map((item, index) => service.answer(item, index)) };
      },
    },
    meter: "api",
    interval: 3_600_000,
    provisioner: { ensure: async () => {} },
    breaker: new CircuitBreaker(() => {}, () => {}),
    host: { error: (message) => errors.push(message) },
    onResult: (result) => results.push(result),
  });
  return { buffer, sent, errors, results, service };
}

test("calls of an organization in a minute are one item, with their time once that has passed", async () => {
  mock.timers.enable({ apis: ["Date"], now: Date.parse("2026-11-30T10:00:30Z") });
  try {
    const { buffer, sent } = bufferWith();
    for (let calls = 0; calls < 3; calls++) buffer.add("org_1", 2);
    buffer.add("org_2", 1);
    mock.timers.setTime(Date.parse("2026-11-30T10:02:00Z"));
    buffer.add("org_1", 5);
    await buffer.flush();
    assert.deepEqual(
      sent.flat().map(({ idempotencyKey: _, ...item }) => item),
      [
        { op: "track", organizationId: "org_1", meter: "api", amount: 6, timestamp: "2026-11-30T10:00:30.000Z" },
        { op: "track", organizationId: "org_2", meter: "api", amount: 1, timestamp: "2026-11-30T10:00:30.000Z" },
        { op: "track", organizationId: "org_1", meter: "api", amount: 5 },
      ],
    );
  } finally {
    mock.timers.reset();
  }
});

test("an item that was sent keeps its operation and its key, until there is an answer", async () => {
  const { buffer, sent, service } = bufferWith(problem(503, "overloaded"));
  buffer.repeat({ op: "consume", organizationId: "org_1", meter: "api", amount: 1, idempotencyKey: "k" });
  await buffer.flush();
  await buffer.flush();
  service.answer = counted;
  await buffer.flush();
  await buffer.flush();
  assert.deepEqual(sent.map(([{ op, idempotencyKey }]) => [op, idempotencyKey]), [["consume", "k"], ["consume", "k"], ["consume", "k"]]);
});

test("what fails is repeated, and what else was in its batch is not", async () => {
  const { buffer, sent, service, results } = bufferWith((item, index) => (item.organizationId === "org_2" ? problem(504, "outcome_unknown") : counted)(item, index));
  for (const organizationId of ["org_1", "org_2", "org_3"]) buffer.add(organizationId, 1);
  await buffer.flush();
  service.answer = counted;
  await buffer.flush();
  assert.deepEqual(sent.map((items) => items.map(({ organizationId }) => organizationId)), [["org_1", "org_2", "org_3"], ["org_2"]]);
  assert.equal(sent[0][1].idempotencyKey, sent[1][0].idempotencyKey);
  assert.deepEqual(results.map(({ organizationId }) => organizationId), ["org_1", "org_3", "org_2"]);
});

test("a denied call was answered, so it is tracked under another key", async () => {
  const { buffer, sent } = bufferWith((item, index) => (item.op === "consume" ? problem(429, "limit_exceeded") : counted)(item, index));
  buffer.repeat({ op: "consume", organizationId: "org_1", meter: "api", amount: 1, idempotencyKey: "k" });
  await buffer.flush();
  assert.deepEqual(sent.flat().map(({ op, idempotencyKey }) => [op, idempotencyKey]), [["consume", "k"], ["track", "k/answered"]]);
});

test("what happened too long ago counts as of now, and what Tallyman does not take is dropped and logged", async () => {
  const { buffer, sent, errors } = bufferWith((item, index) => {
    if (item.timestamp) return problem(422, "timestamp_out_of_range")(item, index);
    return (item.organizationId === "org_2" ? problem(403, "forbidden") : counted)(item, index);
  });
  const charge = { op: "track", meter: "api", amount: 1, timestamp: "2026-11-01T00:00:00Z" };
  buffer.repeat({ ...charge, organizationId: "org_1", idempotencyKey: "1" });
  buffer.repeat({ ...charge, organizationId: "org_2", idempotencyKey: "2" });
  await buffer.flush();
  assert.deepEqual(sent.map((items) => items.map(({ idempotencyKey, timestamp }) => [idempotencyKey, timestamp])), [
    [["1", charge.timestamp], ["2", charge.timestamp]],
    [["1", undefined], ["2", undefined]],
  ]);
  assert.deepEqual(errors, ['Tallyman does not count 1 units of "org_2": as the test says']);
});

test("a batch that Tallyman does not take at all is dropped, and one without an answer waits", async () => {
  const { buffer, sent, errors, service } = bufferWith();
  const failing = (code, status) => () => {
    throw new TallymanError("POST /v1/batch", { status, code, detail: "as the test says" });
  };
  buffer.add("org_1", 1);
  service.answer = failing("unreachable", 0);
  await buffer.flush();
  service.answer = failing("forbidden", 403);
  await buffer.flush();
  service.answer = counted;
  await buffer.flush();
  assert.equal(sent.length, 2);
  assert.deepEqual(errors, ["Tallyman does not take 1 counts, which are dropped"]);
});

test("memory is bounded: beyond 10,000 items, counts are dropped, and the log says how many", async () => {
  const { buffer, sent, errors } = bufferWith();
  for (let organization = 0; organization < 10_005; organization++) buffer.add(`org_${organization}`, 2);
  buffer.add("org_0", 2);
  await buffer.flush();
  assert.equal(sent.flat().length, 10_000);
  assert.equal(sent.flat()[0].amount, 4);
  assert.deepEqual(errors, ["more than 10000 counts wait for Tallyman; further ones are dropped", "10 units were dropped while Tallyman was away"]);
});
