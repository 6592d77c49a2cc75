// How the plugin gets along with Better Auth's sessions: it reads them once, and loses none of their cookies.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { createAuthMiddleware } from "better-auth/api";
import { startTallyman } from "tallyman-testing/tallyman";
import { counted, makeAuth, memoryDatabase, newMember, setLimit, User } from "./support.js";

/** @type {import("tallyman-testing/tallyman").Tallyman} */
let tallyman;
let usage;

before(async () => {
  tallyman = await startTallyman();
  usage = { tallyman: { url: tallyman.url, key: tallyman.key, timeout: 10_000 } };
});
after(() => tallyman.remove());

test("counting a call reads nothing from the database that its endpoint does not read anyway", async () => {
  const rows = memoryDatabase();
  const reads = [];
  const database = (options) => {
    const adapter = memoryAdapter(rows)(options);
    const recorded = (method) => (query) => (reads.push(`${method} ${query.model}`), adapter[method](query));
    return { ...adapter, findOne: recorded("findOne"), findMany: recorded("findMany"), count: recorded("count") };
  };
  const counting = makeAuth(usage, { database });
  const { user, organizationId } = await newMember(counting);
  const plugins = counting.options.plugins.filter(({ id }) => id !== "usage-tracking");
  const without = betterAuth({ ...counting.options, plugins });
  const readsOf = async (auth) => {
    reads.length = 0;
    assert.equal((await new User(auth, user.id, user.headers).work()).status, 200);
    return [...reads];
  };
  const expected = await readsOf(without);
  assert.ok(expected.length > 0);
  assert.deepEqual(await readsOf(counting), expected);
  assert.equal(await counted(tallyman, organizationId), 1);
});

test("a session that is refreshed by a call is refreshed in the browser, also if the call is refused", async () => {
  const { user, organizationId } = await newMember(makeAuth(usage, { session: { updateAge: 0 } }));
  await setLimit(tallyman, organizationId, 1);
  for (const expected of [200, 429]) {
    const { status, headers } = await user.work();
    assert.equal(status, expected);
    assert.match(headers.getSetCookie().join("\n"), /session_token=.+Max-Age=604800/);
  }
});

/** A plugin that makes a session of a header, as that for API keys does. */
const headerSessions = (session) => ({
  id: "header-sessions",
  hooks: {
    before: [
      {
        matcher: ({ headers }) => headers?.has("x-session") ?? false,
        handler: createAuthMiddleware(async (ctx) => {
          ctx.context.session = session();
        }),
      },
    ],
  },
});

test("sessions that an earlier plugin makes in a hook are counted, those of a later one are not", async () => {
  for (const [position, expected] of [["before", 1], ["after", 0]]) {
    let session;
    const auth = makeAuth(usage, { [position]: [headerSessions(() => session)] });
    const { user, organizationId } = await newMember(auth);
    session = await auth.api.getSession({ headers: new Headers(user.headers) });
    const { status } = await new User(auth, user.id, { "x-session": "yes" }).work();
    assert.equal(status, 200);
    assert.equal(await counted(tallyman, organizationId), expected, position);
  }
});
