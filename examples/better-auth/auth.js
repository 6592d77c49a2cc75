// Better Auth with the plugin: users, organizations, and a limit of calls for each organization.

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { createAuthEndpoint, sessionMiddleware } from "better-auth/api";
import { admin, organization } from "better-auth/plugins";
import { usageTracking } from "@tallyman/better-auth";

/** Few, so that the limit is soon reached. */
const LIMIT = 20;

/** Everything but the counts, which are in Tallyman. A real application has a database here. */
const database = { user: [], session: [], account: [], verification: [], organization: [], member: [], invitation: [] };

/** What the application does for its users; each call of it is counted. */
const reports = {
  id: "reports",
  endpoints: {
    makeReport: createAuthEndpoint("/make-report", { method: "POST", use: [sessionMiddleware] }, async ({ context }) => ({
      title: `Report for ${context.session.user.name}`,
    })),
  },
};

export function createAuth(baseURL) {
  return betterAuth({
    baseURL,
    secret: process.env.BETTER_AUTH_SECRET ?? randomBytes(32).toString("hex"),
    database: memoryAdapter(database),
    emailAndPassword: { enabled: true },
    telemetry: { enabled: false },
    databaseHooks: {
      // The first user is the platform's administrator, and may change limits.
      user: { create: { before: async (user) => ({ data: { ...user, role: database.user.length ? "user" : "admin" } }) } },
    },
    plugins: [
      admin(),
      organization(),
      reports,
      usageTracking({
        tallyman: tallymanOptions(),
        defaultApiLimit: LIMIT,
        onUsageWarning: ({ organizationId, percentage }) => console.log(`${organizationId} has used ${percentage}% of its calls`),
        onLimitExceeded: ({ organizationId, limit }) => console.log(`${organizationId} has used all of its ${limit} calls`),
      }),
    ],
  });
}

/** The Tallyman of the environment, else that of `make dev`. */
function tallymanOptions() {
  // More than the default of 300 ms, because both servers share a developer's machine.
  const options = { url: process.env.TALLYMAN_URL ?? "http://127.0.0.1:7400", timeout: 10_000 };
  if (process.env.TALLYMAN_API_KEY) return { ...options, key: process.env.TALLYMAN_API_KEY };
  try {
    return { ...options, key: readFileSync(new URL("../../.tallyman/admin-key", import.meta.url), "utf8").trim() };
  } catch {
    throw new Error("There is no Tallyman yet: run `make dev` in the root of the repository, or set TALLYMAN_URL and TALLYMAN_API_KEY");
  }
}
