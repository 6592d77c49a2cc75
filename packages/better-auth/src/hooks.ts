// The hooks around Better Auth's endpoints: which calls are counted, for which organization, and how one is refused.

import { APIError, createAuthMiddleware, getSessionFromCtx } from "better-auth/api";
import type { BetterAuthPlugin, GenericEndpointContext, HookEndpointContext } from "better-auth";
import type { CountBuffer } from "./count-buffer.js";
import { USAGE_TRACKING_ERROR_CODES } from "./errors.js";
import type { Host } from "./host.js";
import type { AuthCall, AuthSession, Settings } from "./settings.js";
import type { Refusal, Tracker } from "./tracker.js";

/** What the plugin itself serves, and what clients call by themselves, often. */
const NEVER_COUNTED = ["/usage-tracking/*", "/get-session", "/token", "/jwks", "/.well-known/*", "/ok", "/error"];

interface HookParts {
  settings: Settings;
  tracker: Tracker;
  buffer: CountBuffer;
  host: Host;
}

/** The hook that counts a call before its endpoint runs. */
export function countingHook({ settings, tracker, buffer, host }: HookParts) {
  /** A request may pass several endpoints, and counts once. */
  const seen = new WeakSet<Request>();
  return {
    matcher({ path, request }: HookEndpointContext): boolean {
      return path !== undefined && !matches(path, NEVER_COUNTED) && (request !== undefined || settings.countServerCalls === true);
    },
    handler: createAuthMiddleware(async (ctx) => {
      const { request } = ctx;
      if (request) {
        if (seen.has(request)) return;
        seen.add(request);
      }
      const organizationId = (await findSession(ctx))?.session.activeOrganizationId;
      if (!organizationId) return;
      const call: AuthCall = { path: ctx.path, method: request?.method ?? ctx.method, request, organizationId };
      const amount = amountOf(call, settings, host);
      if (amount === 0) return;
      const run = async (callbacks: Promise<void>) => {
        await ctx.context.runInBackgroundOrAwait(callbacks);
      };
      const isRefusable = !matches(call.path, settings.neverRefuse);
      const refusal = await tracker.count(call, amount, isRefusable, run);
      if (refusal) throw refused(refusal, ctx.responseHeaders);
      if (settings.mode === "async" && ctx.context.options.advanced?.backgroundTasks?.handler) ctx.context.runInBackground(buffer.flush());
    }),
  };
}

/** The session of a call. It stays in the context, where the endpoint finds it without reading it again. */
async function findSession(ctx: GenericEndpointContext): Promise<AuthSession | null> {
  if (!ctx.request && !ctx.headers) return null;
  // The headers that the plugin `bearer` makes of a token are invisible to the hooks of other plugins.
  const bearer: BetterAuthPlugin | null = ctx.context.getPlugin("bearer");
  for (const { matcher, handler } of bearer?.hooks?.before ?? []) {
    if (!matcher(ctx as HookEndpointContext)) continue;
    const result = (await handler({ ...ctx, returnHeaders: false })) as { context: { headers: Headers } } | undefined;
    if (result) return getSessionFromCtx({ ...ctx, headers: result.context.headers });
  }
  return getSessionFromCtx(ctx);
}

/** Whether a path is one of the patterns, or begins like one that ends in a star. */
function matches(path: string, patterns: string[]): boolean {
  return patterns.some((pattern) => (pattern.endsWith("*") ? path.startsWith(pattern.slice(0, -1)) : path === pattern));
}

function amountOf(call: AuthCall, { amount }: Settings, host: Host): number {
  if (!amount) return 1;
  try {
    const units = amount(call);
    if (Number.isInteger(units) && units >= 0) return units;
    host.error(`amount must be an integer from 0; got ${units} for ${call.path}, which counts as 1`);
  } catch (error) {
    host.error(`amount failed for ${call.path}, which counts as 1`, error);
  }
  return 1;
}

function refused(refusal: Refusal, responseHeaders: Headers): APIError {
  // Better Auth sends only the headers that the error carries: cookies of a refreshed session must be among them.
  const headers = new Headers(responseHeaders);
  if (refusal === "unavailable") {
    headers.set("retry-after", "1");
    return new APIError("SERVICE_UNAVAILABLE", USAGE_TRACKING_ERROR_CODES.USAGE_UNAVAILABLE, headers);
  }
  const { organizationId, current, limit, resetDate, retryAfter } = refusal;
  if (retryAfter !== undefined) headers.set("retry-after", String(Math.max(1, retryAfter)));
  return new APIError("TOO_MANY_REQUESTS", { ...USAGE_TRACKING_ERROR_CODES.API_LIMIT_EXCEEDED, organizationId, current, limit, resetDate }, headers);
}
