import { adminClient, organizationClient } from "better-auth/client/plugins";
import { createAuthClient } from "better-auth/react";
import { usageTrackingClient } from "@tallyman/better-auth/client";

export const authClient = createAuthClient({ plugins: [adminClient(), organizationClient(), usageTrackingClient()] });
