// Better Auth with the plugin, in this process: users, organizations and their calls.

import { createHmac } from "node:crypto";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { admin, bearer, organization } from "better-auth/plugins";
import { usageTracking } from "@tallyman/better-auth";

const URL = "http://127.0.0.1:3000";

export function memoryDatabase() {
  return { user: [], session: [], account: [], verification: [], organization: [], member: [], invitation: [] };
}

/**
 * An auth server.
 *
 * @param {import("@tallyman/better-auth").UsageTrackingOptions} usage options of the plugin
 * @param {object} options `database` as `betterAuth` takes it, or that of `memoryDatabase`; `before` and `after` have plugins
 *   around this one; the rest are options of `betterAuth`
 */
export function makeAuth(usage, { database = memoryDatabase(), before = [], after = [], log = [], ...options } = {}) {
  const auth = betterAuth({
    baseURL: URL,
    secret: "a secret for tests, known to everybody",
    database: Array.isArray(database.user) ? memoryAdapter(database) : database,
    // Hashing would take most of the time.
    emailAndPassword: { enabled: true, password: { hash: async (password) => password, verify: async ({ hash, password }) => hash === password } },
    telemetry: { enabled: false },
    rateLimit: { enabled: false },
    logger: { log: (level, message) => log.push(`${level}: ${message}`) },
    plugins: [admin(), organization(), bearer(), ...before, usageTracking(usage), ...after],
    ...options,
  });
  return Object.assign(auth, { log });
}

/** A signed-in user of an auth server. */
export class User {
  constructor(auth, id, headers) {
    this.auth = auth;
    this.id = id;
    this.headers = headers;
  }

  static async signUp(auth, name) {
    const { headers, response } = await auth.api.signUpEmail({
      body: { name, email: `${name}@example.com`, password: "correct horse battery" },
      returnHeaders: true,
    });
    const cookie = headers.getSetCookie().map((it) => it.split(";")[0]).join("; ");
    return new User(auth, response.user.id, { cookie });
  }

  /** Calls an endpoint over HTTP; returns the status, the headers and the decoded body. */
  async call(method, path, body, headers = {}) {
    const response = await this.auth.handler(
      new Request(`${URL}/api/auth${path}`, {
        method,
        headers: { ...this.headers, origin: URL, ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      }),
    );
    const { status, headers: received } = response;
    const isJson = received.get("content-type")?.startsWith("application/json");
    return { status, headers: received, body: isJson ? await response.json() : await response.text() };
  }

  /** A cheap call that is counted. */
  work() {
    return this.call("GET", "/organization/get-full-organization");
  }

  async makeOrganization(slug) {
    const { id } = await this.auth.api.createOrganization({ body: { name: slug, slug }, headers: this.headers });
    return id;
  }
}

let organizations = 0;

/** A user whose active organization is new, and its id. */
export async function newMember(auth) {
  const name = `member-${process.pid}-${++organizations}`;
  const user = await User.signUp(auth, name);
  const organizationId = await user.makeOrganization(name);
  return { user, organizationId };
}

/** The count of an organization according to Tallyman; 0 if it does not know it. */
export async function counted(tallyman, organizationId, meter = "api") {
  const { body } = await tallyman.api("GET", `/v1/organizations/${organizationId}/usage`);
  return body.meters?.[meter]?.current ?? 0;
}

/** Waits for a condition that events bring about; fails after ten seconds. */
export async function until(condition, what) {
  const deadline = Date.now() + 10_000;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ten seconds: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Limits an organization, which is created if Tallyman does not know it; null is unlimited. */
export async function setLimit(tallyman, organizationId, limit, enforcement = "hard") {
  const path = `/v1/organizations/${organizationId}`;
  const { status } = await tallyman.api("GET", path);
  if (status === 404) await tallyman.api("PUT", path, {});
  const patched = await tallyman.api("PATCH", `${path}/limits`, { api: { limit, enforcement } });
  if (patched.status !== 200) throw new Error(JSON.stringify(patched.body));
}

/** Of a webhook. */
export const SECRET = `whsec_${Buffer.from("a secret of a webhook, for tests").toString("base64")}`;

/** An event, signed as Tallyman signs it. */
export function signed(event, secret = SECRET, sentAt = Math.floor(Date.now() / 1000)) {
  const { id, ...rest } = event;
  const body = JSON.stringify(rest);
  const mac = createHmac("sha256", Buffer.from(secret.slice(6), "base64")).update(`${id}.${sentAt}.${body}`).digest("base64");
  const headers = { "content-type": "application/json", "webhook-id": id, "webhook-timestamp": String(sentAt), "webhook-signature": `v1,${mac}` };
  return { body, headers };
}

/** An event. */
export function warning(organizationId, id = `evt_${crypto.randomUUID().replaceAll("-", "")}`) {
  const data = { organizationId, meter: "api", threshold: 80, current: 801, limit: 1000, periodStart: "2026-11-01T00:00:00Z", resetDate: "2026-12-01T00:00:00Z" };
  return { id, type: "usage.warning", timestamp: new Date().toISOString(), data };
}
