import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { after, test } from "node:test";
import { inspect } from "node:util";

import { TallymanError } from "@tallyman/client";
import { badGateway, faultyFetch, hanging, refused } from "tallyman-testing/faults";
import { startTallyman } from "tallyman-testing/tallyman";

import { createTallyman } from "./support.js";

const service = await startTallyman();
after(() => service.remove());
const tallyman = createTallyman(service);

/** The error of a call that must fail. */
async function failure(promise) {
  const error = await promise.then(
    (value) => assert.fail(`returned ${inspect(value)}`),
    (error) => error,
  );
  assert.ok(error instanceof TallymanError, inspect(error));
  return error;
}

test("a problem is an error with its status, code, detail and request id, and a message that names the call", async () => {
  const error = await failure(tallyman.usage("nobody"));
  assert.equal(error.status, 404);
  assert.equal(error.code, "not_found");
  assert.match(error.requestId, /^[0-9a-f-]{36}$/);
  assert.equal(error.message, `GET /v1/organizations/{id}/usage: 404 not_found: ${error.detail}`);
});

test("an invalid field is named", async () => {
  const error = await failure(tallyman.consume({ organizationId: "org", amount: 0 }));
  assert.equal(error.code, "invalid_field");
  assert.equal(error.errors[0].pointer, "/amount");
  assert.equal(error.message, `POST /v1/consume /amount: 400 invalid_field: ${error.detail}`);
});

test("no error shows the key", async () => {
  const key = "tm_0123456789abcdef_topsecret";
  for (const options of [{ key }, { key: `${key}\u0000` }, { key: `${key}\u20ac` }, { key, fetch: refused }]) {
    const error = await failure(createTallyman({ url: service.url, ...options }).usage("org"));
    assert.ok(!inspect(error, { depth: 10 }).includes("topsecret"), error.message);
  }
});

test("a refused connection and a response that does not arrive have codes of their own", async () => {
  const listener = createServer().listen(0, "127.0.0.1");
  await once(listener, "listening");
  const { port } = listener.address();
  await new Promise((resolve) => listener.close(resolve));
  const away = createTallyman({ url: `http://127.0.0.1:${port}`, key: "tm_key", retries: 0 });
  const unreachable = await failure(away.consume({ organizationId: "org" }));
  assert.equal(unreachable.status, 0);
  assert.equal(unreachable.code, "unreachable");
  assert.equal(unreachable.cause.cause.code, "ECONNREFUSED");

  const slow = createTallyman({ ...service, timeout: 50, fetch: Object.assign(faultyFetch(), { fault: hanging }) });
  for (const call of [slow.consume({ organizationId: "org" }), slow.usage("org"), slow.check({ organizationId: "org" })]) {
    assert.equal((await failure(call)).code, "timeout");
  }
});

test("a fetch that ignores its signal holds no call longer than the timeout", async () => {
  let asked = 0;
  const deaf = createTallyman({ ...service, timeout: 150, fetch: () => (asked++, new Promise(() => {})) });
  assert.equal((await failure(deaf.consume({ organizationId: "org" }))).code, "timeout");
  assert.equal((await failure(deaf.consume({ organizationId: "org" }))).code, "timeout");
  assert.equal(asked, 2, "the second call was sent");
});

test("the caller's signal ends a call", async () => {
  const slow = createTallyman({ ...service, fetch: Object.assign(faultyFetch(), { fault: hanging }) });
  const reason = new Error("the user went away");
  for (const call of [(options) => slow.consume({ organizationId: "org" }, options), (options) => slow.usage("org", options)]) {
    const controller = new AbortController();
    const failed = failure(call({ signal: controller.signal }));
    controller.abort(reason);
    const error = await failed;
    assert.equal(error.code, "aborted");
    assert.equal(error.cause, reason);
    assert.equal((await failure(call({ signal: AbortSignal.abort(reason) }))).code, "aborted");
  }
});

test("what is not a Tallyman is named as such", async () => {
  const page = async () => new Response("<h1>Welcome</h1>", { headers: { "content-type": "text/html" } });
  const welcome = await failure(createTallyman({ ...service, fetch: page }).consume({ organizationId: "org" }));
  assert.equal(welcome.code, "unexpected_response");
  assert.match(welcome.detail, /text\/html/);
  assert.ok(welcome.detail.includes(service.url));
  const other = createTallyman({ ...service, fetch: async () => Response.json({ ok: true }) });
  const both = await Promise.allSettled([1, 2, 3].map(() => other.consume({ organizationId: "org" })));
  for (const { reason } of both) assert.equal(reason.code, "unexpected_response");
  const gateway = await failure(createTallyman({ ...service, fetch: badGateway, retries: 0 }).usage("org"));
  assert.equal(gateway.status, 502);
  assert.equal(gateway.code, "unexpected_response");
});

test("the URL and the key come from the environment, and what is missing is named", async () => {
  assert.throws(() => createTallyman(), { name: "TallymanError", code: "not_configured", message: /TALLYMAN_URL/ });
  process.env.TALLYMAN_URL = `${service.url}/`;
  assert.throws(() => createTallyman(), { name: "TallymanError", code: "not_configured", message: /TALLYMAN_API_KEY/ });
  process.env.TALLYMAN_API_KEY = service.key;
  assert.equal((await createTallyman().consume({ organizationId: "env" })).current, 1);
  for (const url of ["127.0.0.1:7400", "ftp://localhost", "http://user:password@localhost"]) {
    assert.throws(() => createTallyman({ url }), (error) => error.code === "not_configured" && !error.message.includes("password@"));
  }
});

test("a key may be a function, which is asked for each request", async () => {
  const keys = ["tm_0123456789abcdef_wrong", service.key];
  const client = createTallyman({ url: service.url, key: async () => keys.shift() });
  assert.equal((await failure(client.consume({ organizationId: "rotated" }))).status, 401);
  assert.equal((await client.consume({ organizationId: "rotated" })).current, 1);
});

test("an id that would lead to another operation, and a key that no header can have, are not sent", async () => {
  const fetch = faultyFetch();
  const client = createTallyman({ ...service, fetch });
  for (const id of ["", ".", ".."]) assert.equal((await failure(client.deleteOrganization(id))).code, "invalid_field");
  assert.equal((await failure(client.track({ organizationId: "org" }, { idempotencyKey: "\u20ac" }))).code, "invalid_field");
  assert.equal((await failure(client.refund({ organizationId: "org" }, { idempotencyKey: "" }))).code, "invalid_field");
  assert.deepEqual(fetch.requests, []);
  assert.equal((await failure(client.organization("a/../b?c"))).status, 400);
  assert.equal(fetch.requests[0].path, "/v1/organizations/a%2F..%2Fb%3Fc");
});
