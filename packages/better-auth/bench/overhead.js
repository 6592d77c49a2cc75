// What the plugin adds to a call of Better Auth: the same calls without it, and with it in exact and in async mode.
//
// The auth servers take turns, so that what else the machine does meets all of them.

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { organization } from "better-auth/plugins";
import { usageTracking } from "@tallyman/better-auth";

const ROUNDS = Number(process.env.ROUNDS ?? 30);
const CALLS = Number(process.env.CALLS ?? 300);
const BASE_URL = "http://127.0.0.1:3000";
/** Cheap, and needs a session. */
const PATH = "/api/auth/organization/get-active-member";

const release = fileURLToPath(new URL("../../../target/release/tallyman", import.meta.url));
if (!process.env.TALLYMAN_EXECUTABLE && existsSync(release)) process.env.TALLYMAN_EXECUTABLE = release;
const { startTallyman } = await import("tallyman-testing/tallyman");

const service = await startTallyman({ TALLYMAN_DEFAULT_LIMIT: String(10 ** 12) });
try {
  const tallyman = { url: service.url, key: service.key, timeout: 10_000 };
  const ways = [
    { name: "no plugin", plugins: [] },
    { name: "exact", plugins: [usageTracking({ tallyman })] },
    { name: "async", plugins: [usageTracking({ tallyman, mode: "async" })] },
  ];
  const servers = [];
  for (const { name, plugins } of ways) servers.push({ name, call: await callOf(plugins), durations: [] });
  // The first round warms up.
  for (let round = 0; round <= ROUNDS; round++) {
    const order = [...servers.slice(round % servers.length), ...servers.slice(0, round % servers.length)];
    for (const { call, durations } of order) {
      for (let calls = 0; calls < CALLS; calls++) {
        const start = performance.now();
        await call();
        if (round > 0) durations.push(performance.now() - start);
      }
    }
  }
  print(servers);
} finally {
  await service.remove();
}

/** Returns what makes one call of an auth server, in this process. */
async function callOf(plugins) {
  const auth = betterAuth({
    baseURL: BASE_URL,
    secret: "a secret for benchmarks, known to everybody",
    database: memoryAdapter({ user: [], session: [], account: [], verification: [], organization: [], member: [], invitation: [] }),
    emailAndPassword: { enabled: true },
    telemetry: { enabled: false },
    rateLimit: { enabled: false },
    plugins: [organization(), ...plugins],
  });
  const { headers } = await auth.api.signUpEmail({
    body: { name: "Ada", email: "ada@example.com", password: "correct horse battery" },
    returnHeaders: true,
  });
  const cookie = headers.getSetCookie().map((it) => it.split(";")[0]).join("; ");
  await auth.api.createOrganization({ body: { name: "Acme", slug: "acme" }, headers: { cookie } });
  return async () => {
    const response = await auth.handler(new Request(BASE_URL + PATH, { headers: { cookie } }));
    if (response.status !== 200) throw new Error(`${response.status} ${await response.text()}`);
    await response.text();
  };
}

function print(servers) {
  console.log(`Node ${process.versions.node}; ${ROUNDS} rounds of ${CALLS} calls each, one after the other\n`);
  console.log("| | p50 | p99 | added at p50 | added at p99 |");
  console.log("|---|---:|---:|---:|---:|");
  const ms = (value) => `${value.toFixed(2)} ms`;
  const [none] = servers.map(({ durations }) => percentiles(durations));
  for (const { name, durations } of servers) {
    const { p50, p99 } = percentiles(durations);
    const added = name === "no plugin" ? " | " : `${ms(p50 - none.p50)} | ${ms(p99 - none.p99)}`;
    console.log(`| ${name} | ${ms(p50)} | ${ms(p99)} | ${added} |`);
  }
}

function percentiles(durations) {
  const sorted = durations.toSorted((a, b) => a - b);
  const at = (share) => sorted[Math.floor(share * (sorted.length - 1))];
  return { p50: at(0.5), p99: at(0.99) };
}
