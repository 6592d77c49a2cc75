// The endpoint that takes Tallyman's events, each once.

import { createHash } from "node:crypto";
import { APIError, createAuthEndpoint } from "better-auth/api";
import type { GenericEndpointContext } from "better-auth";
import { type TallymanEvent, verifyWebhook } from "@tallyman/client";
import type { EndpointParts } from "./endpoints.js";
import { USAGE_TRACKING_ERROR_CODES as CODES } from "./errors.js";

/** Milliseconds in which an event may arrive again: Tallyman retries for a day, and people later. */
const REMEMBERED = 7 * 86_400_000;

/** `POST /usage-tracking/webhook`: calls back for a signed event, whichever process it reaches, and however often. */
export function usageTrackingWebhook({ settings, callbacks }: EndpointParts) {
  return createAuthEndpoint(
    "/usage-tracking/webhook",
    // The signature is over the bytes as they came.
    { method: "POST", disableBody: true, requireRequest: true, metadata: { scope: "http" } },
    async (ctx): Promise<{ received: true }> => {
      const secret = settings.webhookSecret;
      const event = secret === undefined ? undefined : await verifyWebhook(ctx.request, secret).catch(() => undefined);
      if (!event) throw new APIError("UNAUTHORIZED", CODES.INVALID_WEBHOOK);
      if (await claim(ctx, event)) await ctx.context.runInBackgroundOrAwait(callbacks.onEvent(event));
      return { received: true };
    },
  );
}

/** Whether the event is new. Better Auth's table of verifications remembers it for all processes. */
async function claim({ context }: GenericEndpointContext, { id }: TallymanEvent): Promise<boolean> {
  const { internalAdapter, adapter, secondaryStorage, options } = context;
  const identifier = `usage-tracking:${id}`;
  if (await internalAdapter.findVerificationValue(identifier)) return false;
  const now = new Date();
  const row = { identifier, value: "received", expiresAt: new Date(now.getTime() + REMEMBERED), createdAt: now, updatedAt: now };
  if (secondaryStorage && !options.verification?.storeInDatabase) {
    await internalAdapter.createVerificationValue(row);
    return true;
  }
  // Of two processes that get the event at the same time, the primary key stops one.
  const primaryKey = uuidOf(identifier);
  try {
    await adapter.create({ model: "verification", data: { id: primaryKey, ...row }, forceAllowId: true });
    return true;
  } catch (error) {
    const where = [{ field: "id", value: primaryKey }];
    if (await adapter.findOne({ model: "verification", where })) return false;
    throw error;
  }
}

/** A UUID that is made of the text, because the columns of some databases take nothing else. */
function uuidOf(text: string): string {
  const digest = createHash("sha256").update(text).digest("hex");
  return `${digest.slice(0, 8)}-${digest.slice(8, 12)}-5${digest.slice(13, 16)}-8${digest.slice(17, 20)}-${digest.slice(20, 32)}`;
}
