// What `coalesce` brings a Node server: concurrent consumes a second, and the CPU that each takes of Node and of Tallyman.
//
// Both ways take turns, so that what else the machine does meets both; a figure is the median of the rounds.

import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { createTallyman } from "@tallyman/client";

const ROUNDS = Number(process.env.ROUNDS ?? 7);
const SECONDS = Number(process.env.SECONDS ?? 2);
const CONCURRENCIES = [1, 16, 64];
const ORGANIZATIONS = 1000;
/** Of /proc/<pid>/stat, on every Linux. */
const TICKS_PER_SECOND = 100;

const release = fileURLToPath(new URL("../../../target/release/tallyman", import.meta.url));
if (!process.env.TALLYMAN_EXECUTABLE && existsSync(release)) process.env.TALLYMAN_EXECUTABLE = release;
const { startTallyman } = await import("tallyman-testing/tallyman");

const service = await startTallyman({ TALLYMAN_DEFAULT_LIMIT: String(10 ** 12) });
try {
  const clients = { off: createTallyman({ ...service, coalesce: false }), on: createTallyman({ ...service, coalesce: true }) };
  const figures = CONCURRENCIES.map((concurrency) => ({ concurrency, off: [], on: [] }));
  // The first round warms up.
  for (let round = 0; round <= ROUNDS; round++) {
    for (const row of figures) {
      for (const way of round % 2 ? ["off", "on"] : ["on", "off"]) {
        const figure = await measure(clients[way], row.concurrency);
        if (round > 0) row[way].push(figure);
      }
    }
  }
  print(figures);
} finally {
  await service.remove();
}

/** Keeps so many consumes in flight. */
async function measure(client, concurrency) {
  const end = performance.now() + SECONDS * 1000;
  const before = { time: performance.now(), node: nodeCpu(), service: serviceCpu() };
  let calls = 0;
  const worker = async (_, index) => {
    for (let n = index; performance.now() < end; n += concurrency) {
      await client.consume({ organizationId: `org_${n % ORGANIZATIONS}` });
      calls++;
    }
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
  return {
    rate: calls / ((performance.now() - before.time) / 1000),
    node: (nodeCpu() - before.node) / calls,
    service: (serviceCpu() - before.service) / calls,
  };
}

/** Microseconds. */
function nodeCpu() {
  const { user, system } = process.cpuUsage();
  return user + system;
}

/** Microseconds of the service alone; Redis and Postgres are processes of their own. */
function serviceCpu() {
  const stat = readFileSync(`/proc/${service.pid}/stat`, "utf8");
  const [user, system] = stat.slice(stat.lastIndexOf(")") + 2).split(" ").slice(11, 13);
  return ((Number(user) + Number(system)) / TICKS_PER_SECOND) * 1e6;
}

function print(figures) {
  console.log(`Node ${process.versions.node}; median of ${ROUNDS} rounds of ${SECONDS} s; ratios are medians of each round's own\n`);
  console.log("| concurrent consumes | coalesce | calls/s | Node, CPU per call | Tallyman, CPU per call |");
  console.log("|---:|---|---:|---:|---:|");
  for (const { concurrency, off, on } of figures) {
    const cell = (rows, name, format) => format(median(rows.map((row) => row[name])));
    const line = (label, rows, rate, cpu) =>
      console.log(`| ${concurrency} | ${label} | ${cell(rows, "rate", rate)} | ${cell(rows, "node", cpu)} | ${cell(rows, "service", cpu)} |`);
    const [rate, cpu] = [(value) => Math.round(value).toLocaleString("en"), (value) => `${value.toFixed(0)} µs`];
    line("off", off, rate, cpu);
    line("on", on, rate, cpu);
    const ratios = on.map((row, i) => ({ rate: row.rate / off[i].rate, node: row.node / off[i].node, service: row.service / off[i].service }));
    const ratio = (value) => value.toFixed(2);
    line("on / off", ratios, ratio, ratio);
  }
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
