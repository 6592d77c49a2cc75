// Two auth servers, each a process, on one Postgres: their calls share a limit, and each event calls back once.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { realpath } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { getMigrations } from "better-auth/db/migration";
import { Client, Pool } from "pg";
import { startTallyman } from "tallyman-testing/tallyman";
import { counted, makeAuth, newMember, SECRET, signed, warning } from "./support.js";

const PROGRAM = fileURLToPath(new URL("auth-process.js", import.meta.url));

/** @type {import("tallyman-testing/tallyman").Tallyman} */
let tallyman;
/** Of the auth servers, in the Postgres that belongs to the Tallyman. */
let database;
/** In this process, for what is no test's subject. */
let auth;
let pool;

before(async () => {
  tallyman = await startTallyman();
  const host = await realpath(join(tallyman.directory, "postgres"));
  const maintenance = new Client({ host, user: "tallyman", database: "tallyman" });
  await maintenance.connect();
  await maintenance.query("create database auth");
  await maintenance.end();
  database = { host, user: "tallyman", database: "auth" };
  pool = new Pool(database);
  auth = makeAuth({ tallyman: { url: tallyman.url, key: tallyman.key } }, { database: pool });
  const { runMigrations } = await getMigrations(auth.options);
  await runMigrations();
});

after(async () => {
  await pool.end();
  await tallyman.remove();
});

/** Runs a test with two auth servers; `told` has what their callbacks printed once both have ended. */
async function withProcesses(usage, run) {
  const told = [];
  const settings = JSON.stringify({ database, usage: { tallyman: { url: tallyman.url, key: tallyman.key, timeout: 10_000 }, ...usage } });
  const children = [0, 1].map(() => spawn(process.execPath, [PROGRAM, settings], { stdio: ["pipe", "pipe", "inherit"] }));
  const outputs = children.map(({ stdout }) => createInterface({ input: stdout })[Symbol.asyncIterator]());
  try {
    const ports = await Promise.all(outputs.map(async (output) => JSON.parse((await output.next()).value)));
    await run(ports.map((port) => `http://127.0.0.1:${port}/api/auth`));
  } finally {
    for (const { stdin } of children) stdin.end();
  }
  for (const output of outputs) for await (const line of output) told.push(JSON.parse(line));
  return told;
}

test("two processes grant a new organization its limit, warn once, and tell once that it is exceeded", async () => {
  const { user, organizationId } = await newMember(auth);
  let statuses;
  const told = await withProcesses({ defaultApiLimit: 20 }, async (urls) => {
    const calls = Array.from({ length: 50 }, (_, call) => fetch(`${urls[call % 2]}/organization/get-full-organization`, { headers: user.headers }));
    statuses = (await Promise.all(calls)).map(({ status }) => status);
  });
  assert.equal(statuses.filter((status) => status === 200).length, 20);
  assert.equal(statuses.filter((status) => status === 429).length, 30);
  assert.equal(await counted(tallyman, organizationId), 20);
  const names = told.map(({ name, percentage = "" }) => `${name} ${percentage}`).sort();
  assert.deepEqual(names, ["exceeded ", "warning 100", "warning 80"]);
});

test("an event that reaches both processes at the same time calls back once", async () => {
  const deliveries = Array.from({ length: 10 }, () => signed(warning("org_1")));
  const told = await withProcesses({ webhookSecret: SECRET }, async (urls) => {
    for (const delivery of deliveries) {
      const responses = await Promise.all(urls.map((url) => fetch(`${url}/usage-tracking/webhook`, { method: "POST", ...delivery })));
      assert.deepEqual(responses.map(({ status }) => status), [200, 200]);
    }
  });
  assert.equal(told.length, deliveries.length);
});
