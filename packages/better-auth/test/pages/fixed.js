// A page that a server renders and a browser hydrates: data of its own, and data that is still to be loaded.

import { createElement as h } from "react";
import { createAuthClient } from "better-auth/react";
import { usageTrackingClient } from "@tallyman/better-auth/client";
import { ApiUsageCard, FeatureGate, UsageDashboard, UsageTrackingProvider } from "@tallyman/better-auth/react";

/** Its requests are never answered. */
const authClient = createAuthClient({
  baseURL: "http://auth.test",
  fetchOptions: { customFetchImpl: () => new Promise(() => {}) },
  plugins: [usageTrackingClient()],
});
const history = Array.from({ length: 40 }, (_, day) => ({ date: Date.UTC(2026, 10, 1, 23, 30) + day * 86_400_000, value: 1_000 + day }));

export function Page() {
  return h(
    UsageTrackingProvider,
    { authClient, locale: "fr" },
    h(ApiUsageCard),
    h(FeatureGate, { feature: "sso", loading: "loading" }, "single sign-on"),
    h(UsageDashboard, { apiUsage: { current: 81_000, limit: 100_000, resetDate: "2126-12-01T00:00:00Z" }, features: { seats: 2_500 }, history }),
  );
}
