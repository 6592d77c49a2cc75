// The client's actions and atoms, against a server that the test plays.

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { createAuthClient } from "better-auth/client";
import { createAuthClient as createAuthClient15 } from "better-auth-1.5/client";
import { organizationClient } from "better-auth/client/plugins";
import { usageTrackingClient } from "@tallyman/better-auth/client";
import { until } from "./support.js";

// The atoms load in browsers only.
globalThis.window = globalThis;
after(() => delete globalThis.window);

const usage = { api: { current: 3, limit: null, resetDate: "2026-12-01T00:00:00.000Z" }, features: null, planId: "pro", resetMode: "lazy", resetPeriod: "monthly" };
const entry = { id: "1", organizationId: "org_1", metricType: "api", value: 5, date: "2026-11-01T00:00:00.000Z", createdAt: "2026-12-01T00:00:00.000Z" };
const answers = {
  "/usage-tracking/get-usage": () => usage,
  "/usage-tracking/get-usage-history": () => ({ history: [entry] }),
  "/usage-tracking/reset": () => ({ success: true }),
  "/usage-tracking/update-limits": () => ({ success: true }),
};

/** A client whose requests are recorded; `answer` gives the body of a path, or a `Response`. */
function clientOf(answer = {}, create = createAuthClient) {
  const requests = [];
  const customFetchImpl = async (input, init) => {
    const url = new URL(input);
    const path = url.pathname.replace("/api/auth", "");
    requests.push(`${init.method} ${path}${url.search}${init.body ? ` ${init.body}` : ""}`);
    const body = await (answer[path] ?? answers[path] ?? (() => ({})))(url.searchParams);
    return body instanceof Response ? body : Response.json(body);
  };
  const client = create({
    baseURL: "http://auth.test",
    fetchOptions: { customFetchImpl },
    plugins: [usageTrackingClient(), organizationClient()],
  });
  return Object.assign(Object.create(null), { client, requests, atoms: client.$usageTracking });
}

/** Waits until an atom has a value that fits; rejects after five seconds. */
function when(atom, fits) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`stayed ${JSON.stringify(atom.value)}`)), 5000);
    const stop = atom.listen(check);
    check(atom.value);
    function check(value) {
      if (!fits(value)) return;
      clearTimeout(timer);
      setTimeout(() => stop());
      resolve(value);
    }
  });
}

const failure = (status, code) => Response.json({ code, message: code }, { status });
const usagesIn = (requests) => requests.filter((it) => it.includes("/get-usage?") || it.endsWith("/get-usage")).length;

for (const [version, create] of [["1.7", createAuthClient], ["1.5", createAuthClient15]]) {
  test(`the four actions call the endpoints and return bare data, better-auth ${version}`, async () => {
    const { client, requests } = clientOf({}, create);
    const resetDate = new Date("2026-12-01T00:00:00Z");
    assert.deepEqual(await client.usageTracking.getUsage(), { ...usage, api: { current: 3, limit: Infinity, resetDate } });
    await client.usageTracking.getUsage({ organizationId: "org_1" });
    const { history } = await client.usageTracking.getUsageHistory({ limit: 90, granularity: "day", organizationId: undefined });
    assert.deepEqual(history, [{ ...entry, date: new Date(entry.date), createdAt: new Date(entry.createdAt) }]);
    assert.deepEqual(await client.usageTracking.resetUsage({ organizationId: "org_1" }), { success: true });
    await client.usageTracking.updateLimits({ organizationId: "org_1", apiLimit: Infinity, enforcement: "soft" });
    assert.deepEqual(requests, [
      "GET /usage-tracking/get-usage",
      "GET /usage-tracking/get-usage?organizationId=org_1",
      "GET /usage-tracking/get-usage-history?limit=90&granularity=day",
      'POST /usage-tracking/reset {"resetApi":true,"organizationId":"org_1"}',
      'POST /usage-tracking/update-limits {"organizationId":"org_1","apiLimit":null,"enforcement":"soft"}',
    ]);
  });
}

test("a failed action throws Better Auth's error, with status and code", async () => {
  const { client } = clientOf({ "/usage-tracking/get-usage": () => failure(403, "NOT_A_MEMBER") });
  await assert.rejects(client.usageTracking.getUsage({ organizationId: "org_2" }), (error) => {
    assert.equal(error.constructor.name, "BetterFetchError");
    assert.deepEqual([error.status, error.error.code], [403, "NOT_A_MEMBER"]);
    return true;
  });
});

test("an action takes options of fetch, such as the headers of a request that a server renders", async () => {
  let cookie;
  const { client } = clientOf();
  await client.usageTracking.getUsage({}, { headers: { cookie: "session=1" }, onRequest: ({ headers }) => void (cookie = headers.get("cookie")) });
  assert.equal(cookie, "session=1");
});

test("before anything is loaded the usage is an empty one, and loading", () => {
  const { atoms } = clientOf();
  assert.deepEqual(atoms.usageAtom.value.api, { current: 0, limit: Infinity, resetDate: null });
  assert.deepEqual(atoms.historyAtom.value, []);
  assert.equal(atoms.loadingAtom.value, true);
  assert.equal(atoms.errorAtom.value, null);
});

test("the first listener of an atom loads it, once for all of them", async () => {
  const { atoms, requests } = clientOf();
  const stops = [atoms.usageAtom.listen(() => {}), atoms.usageAtom.listen(() => {})];
  await when(atoms.loadingAtom, (loading) => !loading);
  assert.equal(atoms.usageAtom.value.api.current, 3);
  assert.deepEqual(requests, ["GET /usage-tracking/get-usage"]);
  stops.forEach((stop) => stop());

  const stop = atoms.historyAtom.listen(() => {});
  await when(atoms.historyAtom, (history) => history.length === 1);
  assert.deepEqual(requests.slice(1), ["GET /usage-tracking/get-usage-history"]);
  stop();
});

test("fetches at the same time share a request, also with what a listener loads", async () => {
  const { atoms, requests } = clientOf();
  const stop = atoms.usageAtom.listen(() => {});
  await Promise.all([atoms.fetchUsage(), atoms.fetchUsage(), atoms.usageOf().refetch()]);
  assert.deepEqual(requests, ["GET /usage-tracking/get-usage"]);
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(requests, ["GET /usage-tracking/get-usage"]);
  stop();
});

test("the atom shows the organization that was asked for last, whichever answer comes last", async () => {
  const current = { org_1: 1, org_2: 2 };
  const slow = new Promise((resolve) => setTimeout(resolve, 40));
  const { atoms } = clientOf({
    "/usage-tracking/get-usage": async (query) => {
      if (query.get("organizationId") === "org_1") await slow;
      return { ...usage, api: { ...usage.api, current: current[query.get("organizationId")] } };
    },
  });
  await Promise.all([atoms.fetchUsage("org_1"), atoms.fetchUsage("org_2")]);
  assert.equal(atoms.usageAtom.value.api.current, 2);
  assert.equal(atoms.usageOf("org_1").state.value.data.api.current, 1);
});

test("a failed fetch is in the error atom, does not reject, and is gone after a good one", async () => {
  let fails = true;
  const { atoms } = clientOf({ "/usage-tracking/get-usage": () => (fails ? failure(503, "USAGE_UNAVAILABLE") : usage) });
  await atoms.fetchUsage();
  assert.equal(atoms.errorAtom.value.status, 503);
  assert.equal(atoms.loadingAtom.value, false);
  fails = false;
  await atoms.fetchUsage();
  assert.equal(atoms.errorAtom.value, null);
  assert.equal(atoms.usageAtom.value.api.current, 3);
  fails = true;
  await atoms.fetchUsage();
  assert.equal(atoms.usageAtom.value.api.current, 3, "what was loaded stays while the server is away");
});

test("a fetch that reaches no server ends in the error atom", async () => {
  const { atoms } = clientOf({ "/usage-tracking/get-usage": () => Promise.reject(new TypeError("fetch failed")) });
  await atoms.fetchUsage();
  assert.equal(atoms.errorAtom.value.message, "fetch failed");
});

test("resets and changes of limits load again what has listeners, and not what a request before them answers", async () => {
  let current = 3;
  let release;
  const { client, atoms, requests } = clientOf({
    "/usage-tracking/get-usage": async () => {
      const answer = { ...usage, api: { ...usage.api, current } };
      if (current === 3) await new Promise((resolve) => (release = resolve));
      return answer;
    },
  });
  const stop = atoms.usageAtom.listen(() => {});
  await until(() => release, "the first request");
  current = 0;
  await client.usageTracking.resetUsage({ organizationId: "org_1" });
  await when(atoms.loadingAtom, (loading) => !loading);
  release();
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(atoms.usageAtom.value.api.current, 0);
  await client.usageTracking.updateLimits({ organizationId: "org_1", apiLimit: 10 });
  await until(() => usagesIn(requests) === 3, "a third request");
  stop();
});

test("another active organization: what the former one used is gone at once, and loaded anew", async () => {
  let current = 3;
  const { client, atoms, requests } = clientOf({ "/usage-tracking/get-usage": () => ({ ...usage, api: { ...usage.api, current } }) });
  const seen = [];
  const stop = atoms.usageAtom.listen(({ api }) => seen.push(api.current));
  await when(atoms.loadingAtom, (loading) => !loading);
  current = 7;
  await client.organization.setActive({ organizationId: "org_2" });
  await when(atoms.usageAtom, ({ api }) => api.current === 7);
  assert.deepEqual(seen, [3, 0, 7]);
  assert.equal(usagesIn(requests), 2, "the call and the changed session are one reason to load");
  stop();
});

test("signing out removes what was loaded", async () => {
  let signedIn = true;
  const { client, atoms } = clientOf({ "/usage-tracking/get-usage": () => (signedIn ? usage : failure(401, "UNAUTHORIZED")) });
  const stop = atoms.usageAtom.listen(() => {});
  await when(atoms.usageAtom, ({ api }) => api.current === 3);
  signedIn = false;
  await client.signOut();
  await when(atoms.errorAtom, (error) => error?.status === 401);
  assert.equal(atoms.usageAtom.value.planId, "");
  stop();
});

test("what is shown again right after the session has changed is loaded again", async () => {
  const { client, atoms } = clientOf();
  const { state } = atoms.usageOf();
  await when(state, ({ data }) => data !== null);
  await until(() => state.lc === 0);
  await client.signOut();
  await until(() => state.value.data === null);
  await when(state, ({ data }) => data !== null);
});

test("the calls of the client, refused ones too, load the usage again at most once a second, if it has listeners", async () => {
  let current = 0;
  const { client, atoms, requests } = clientOf({
    "/usage-tracking/get-usage": () => ({ ...usage, api: { ...usage.api, current } }),
    "/organization/list": () => (++current > 5 ? failure(429, "API_LIMIT_EXCEEDED") : []),
  });
  await client.organization.list();
  await new Promise((resolve) => setTimeout(resolve, 60));
  assert.equal(usagesIn(requests), 0, "nobody looks");

  const states = [];
  const stop = atoms.usageAtom.listen(() => states.push(atoms.loadingAtom.value));
  await when(atoms.usageAtom, ({ api }) => api.current === 1);
  await client.organization.list();
  await when(atoms.usageAtom, ({ api }) => api.current === 2);
  for (let call = 0; call < 20; call++) await client.organization.list();
  await when(atoms.usageAtom, ({ api }) => api.current === 22);
  assert.equal(usagesIn(requests), 3);
  assert.deepEqual(states.slice(1), [false, false], "nothing flickers");
  stop();
});

test("what failed on the server's side is loaded again by itself while it is watched, what was refused is not", async () => {
  const answersOf = { busy: [failure(503, "USAGE_UNAVAILABLE"), usage], foreign: [failure(403, "NOT_A_MEMBER"), usage] };
  const { atoms } = clientOf({ "/usage-tracking/get-usage": (query) => answersOf[query.get("organizationId")].shift() });
  const [busy, foreign] = [atoms.usageOf("busy"), atoms.usageOf("foreign")];
  const stops = [foreign.state.listen(() => {}), busy.state.listen(() => {})];
  await when(busy.state, ({ error }) => error?.status === 503);
  await when(busy.state, ({ data }) => data?.api.current === 3);
  assert.equal(foreign.state.value.error.status, 403);
  stops.forEach((stop) => stop());
});
