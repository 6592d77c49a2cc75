// The client side of the Better Auth plugin for usage tracking: Better Auth's own client, and the plugin's calls.
//
// Arguments: the URL of the service, and a credential. Each line of standard input is a call in JSON, such as
// ["getUsage", {"organizationId": "org_1"}]; what it comes to is a line on standard output.

import { createInterface } from "node:readline";
import { createAuthClient } from "better-auth/client";

const [, , baseURL, token] = process.argv;

/** Every call goes through Better Auth's fetch, below its base path; a success is its data, a failure `{data, error}`. */
const usageTracking = () => ({
  id: "usage-tracking",
  getActions: ($fetch) => {
    const call = async (path, options) => {
      const answer = await $fetch(`/usage-tracking/${path}`, options);
      return answer.data || answer;
    };
    const read = (path, wanted = {}) => call(`${path}?${new URLSearchParams(wanted)}`, { method: "GET" });
    const write = (path, body) =>
      call(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
    return {
      getUsage: (wanted) => read("get-usage", wanted),
      getUsageHistory: (wanted) => read("get-usage-history", wanted),
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
