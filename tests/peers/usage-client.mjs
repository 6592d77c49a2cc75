// The client of the Better Auth plugin for usage tracking: Better Auth's own client with the plugin's calls.
//
// Arguments: the URL of the service, and a credential. Each line of standard input is a call in JSON, such as
// ["getUsage", {"organizationId": "org_1"}]; its result is a line on standard output.

import { createInterface } from "node:readline";
import { createAuthClient } from "better-auth/client";

const [, , baseURL, token] = process.argv;

/** Calls go through Better Auth's fetch, below its base path. Returns the data, or `{data, error}` on failure. */
const usageTracking = () => ({
  id: "usage-tracking",
  getActions: ($fetch) => {
    const call = async (path, options) => {
      const response = await $fetch(`/usage-tracking/${path}`, options);
      return response.data || response;
    };
    const read = (path, query = {}) => call(`${path}?${new URLSearchParams(query)}`, { method: "GET" });
    const write = (path, body) =>
      call(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
    return {
      getUsage: (query) => read("get-usage", query),
      getUsageHistory: (query) => read("get-usage-history", query),
      resetUsage: (body) => write("reset", body),
      updateLimits: (body) => write("update-limits", body),
      resetExpired: (body) => write("reset-expired", body),
    };
  },
});

const client = createAuthClient({
  baseURL,
  plugins: [usageTracking()],
  fetchOptions: token ? { auth: { type: "Bearer", token } } : {},
});

for await (const line of createInterface({ input: process.stdin })) {
  const [name, argument] = JSON.parse(line);
  console.log(JSON.stringify(await client[name](argument)));
}
