// The quick start's page, of an auth server at the URL in AUTH_URL.

import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { createAuthClient } from "better-auth/react";
import { organizationClient } from "better-auth/client/plugins";
import { usageTrackingClient } from "@tallyman/better-auth/client";
import { ApiUsageCard, AuthUIProvider, FeatureGate, UsageDashboard } from "@tallyman/better-auth/react";

const authClient = createAuthClient({ baseURL: AUTH_URL, plugins: [organizationClient(), usageTrackingClient()] });
globalThis.authClient = authClient;

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <AuthUIProvider authClient={authClient}>
      <main>
        <h1>Usage</h1>
        <div className="wide">
          <ApiUsageCard className="card" />
          <UsageDashboard className="dashboard" />
          <p className="gate">
            <FeatureGate feature="sso" loading="…" fallback="no single sign-on">
              single sign-on
            </FeatureGate>
          </p>
        </div>
      </main>
    </AuthUIProvider>
  </StrictMode>,
);
