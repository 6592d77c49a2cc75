// The endpoints below /usage-tracking. What they answer is declared in types.ts.

import { createHash, timingSafeEqual } from "node:crypto";
import { APIError, createAuthEndpoint } from "better-auth/api";
import { type HistoryRow, type Tallyman, TallymanError, type Usage } from "@tallyman/client";
import * as z from "zod";
import { authorize } from "./access.js";
import type { Callbacks } from "./callbacks.js";
import { USAGE_TRACKING_ERROR_CODES as CODES } from "./errors.js";
import type { Host } from "./host.js";
import type { Provisioner } from "./provisioner.js";
import type { Settings } from "./settings.js";
import type { Tracker } from "./tracker.js";
import type { UsageData, UsageHistoryEntry, Wire } from "./types.js";

export interface EndpointParts {
  settings: Settings;
  tallyman: Tallyman;
  provisioner: Provisioner;
  tracker: Tracker;
  callbacks: Callbacks;
  host: Host;
}

const organizationId = z.string().min(1).optional().meta({ description: "By default the active organization" });
const GRANULARITIES = ["hour", "day", "period"] as const;
type Granularity = (typeof GRANULARITIES)[number];
/** Milliseconds of what a history consists of. */
const UNIT = { hour: 3_600_000, day: 86_400_000 };

/** `GET /usage-tracking/get-usage`: the running period. */
export function getUsage(parts: EndpointParts) {
  return createAuthEndpoint(
    "/usage-tracking/get-usage",
    { method: "GET", query: z.object({ organizationId }).optional() },
    async (ctx): Promise<Wire<UsageData>> => {
      const id = await authorize(ctx, parts.settings, "read", ctx.query?.organizationId);
      await parts.tracker.settle();
      const usage = await answerOf(parts.host, () => usageOf(parts, id));
      const { current = 0, limit = null, resetDate = null } = usage.meters[parts.settings.meter] ?? {};
      const features = Object.keys(usage.features).length > 0 ? usage.features : null;
      const { planId, resetMode, resetPeriod } = usage;
      return { api: { current, limit, resetDate }, features, planId, resetMode, resetPeriod };
    },
  );
}

/** `GET /usage-tracking/get-usage-history`: ended periods, or hours or days with the running one, newest first. */
export function getUsageHistory({ settings, tallyman, host }: EndpointParts) {
  return createAuthEndpoint(
    "/usage-tracking/get-usage-history",
    {
      method: "GET",
      query: z
        .object({
          organizationId,
          limit: z.coerce.number().int().min(1).max(999).default(30),
          granularity: z.enum(GRANULARITIES).default("period"),
        })
        .optional(),
    },
    async (ctx): Promise<{ history: Wire<UsageHistoryEntry>[] }> => {
      const { organizationId, limit = 30, granularity = "period" } = ctx.query ?? {};
      const id = await authorize(ctx, settings, "read", organizationId);
      const range = granularity === "period" ? {} : { from: new Date(Date.now() - limit * UNIT[granularity]).toISOString() };
      // Days of UTC, whatever the organization's zone: charts count in them.
      const zone = granularity === "day" ? { timeZone: "UTC" } : {};
      // One more, because the running period is none of them.
      const latest = { granularity, order: "desc", pageSize: limit + 1 } as const;
      const query = { meter: [settings.meter], ...latest, ...range, ...zone };
      const page = await answerOf(host, () => tallyman.history(id, query).catch(emptyIfUnknown));
      const rows = page.data.filter((row) => granularity !== "period" || !row.open).slice(0, limit);
      return { history: rows.map((row) => entryOf(id, granularity, row)) };
    },
  );
}

/** `POST /usage-tracking/reset`: ends the running period. */
export function resetUsage({ settings, tallyman, callbacks, tracker, host }: EndpointParts) {
  return createAuthEndpoint(
    "/usage-tracking/reset",
    { method: "POST", body: z.object({ organizationId: z.string().min(1), resetApi: z.boolean().default(true) }) },
    async (ctx): Promise<{ success: true }> => {
      const id = await authorize(ctx, settings, "reset", ctx.body.organizationId);
      if (!ctx.body.resetApi) return { success: true };
      // What was counted before the reset belongs to the period that it ends.
      await tracker.settle();
      const { meters } = await answerOf(host, () => tallyman.reset(id, { meters: [settings.meter] }));
      const reset = meters[settings.meter];
      if (reset) await ctx.context.runInBackgroundOrAwait(callbacks.afterReset(id, "manual", reset));
      return { success: true };
    },
  );
}

/** `POST /usage-tracking/update-limits`: changes what is given, for the next call. */
export function updateLimits({ settings, tallyman, provisioner, host }: EndpointParts) {
  return createAuthEndpoint(
    "/usage-tracking/update-limits",
    {
      method: "POST",
      body: z.object({
        organizationId: z.string().min(1),
        apiLimit: z.number().int().min(0).nullish().meta({ description: "Null is unlimited" }),
        enforcement: z.enum(["hard", "soft"]).optional(),
        resetMode: z.enum(["lazy", "scheduled", "manual"]).optional(),
        resetPeriod: z.enum(["hourly", "daily", "weekly", "monthly", "yearly"]).optional(),
      }),
    },
    async (ctx): Promise<{ success: true }> => {
      const { organizationId, apiLimit, enforcement, resetMode, resetPeriod } = ctx.body;
      const id = await authorize(ctx, settings, "update-limits", organizationId);
      const calendar = { ...(resetMode && { resetMode }), ...(resetPeriod && { resetPeriod }) };
      const limit = { ...(apiLimit === undefined ? {} : { limit: apiLimit }), ...(enforcement && { enforcement }) };
      await answerOf(host, async () => {
        await provisioner.create(id);
        if (Object.keys(calendar).length > 0) await tallyman.patchOrganization(id, calendar);
        if (Object.keys(limit).length > 0) await tallyman.patchLimits(id, { [settings.meter]: limit });
      });
      return { success: true };
    },
  );
}

/** `POST /usage-tracking/reset-expired`: ends the periods whose time has come, for a cron job. */
export function resetExpired({ settings, tallyman, callbacks, host }: EndpointParts) {
  return createAuthEndpoint(
    "/usage-tracking/reset-expired",
    { method: "POST", body: z.object({ apiKey: z.string() }) },
    async (ctx): Promise<{ success: true; resetCount: number; organizations: string[] }> => {
      if (!settings.apiKey || !isEqual(ctx.body.apiKey, settings.apiKey)) throw new APIError("UNAUTHORIZED", CODES.INVALID_API_KEY);
      const { resetCount, organizations } = await answerOf(host, () => tallyman.resetExpired());
      const callBack = async () => {
        for (const id of organizations) await callbacks.afterReset(id, "scheduled");
      };
      await ctx.context.runInBackgroundOrAwait(callBack());
      return { success: true, resetCount, organizations };
    },
  );
}

/** The usage of an organization, which need not have been counted yet. */
async function usageOf({ tallyman, provisioner }: EndpointParts, id: string): Promise<Usage> {
  try {
    return await tallyman.usage(id);
  } catch (error) {
    if (!isUnknown(error)) throw error;
    await provisioner.create(id);
    return tallyman.usage(id);
  }
}

/** Tallyman's answer; its failures become 503, because the caller can do nothing about them. */
async function answerOf<T>(host: Host, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof TallymanError && (error.status === 400 || error.status === 422)) {
      throw new APIError("BAD_REQUEST", { code: error.code.toUpperCase(), message: error.detail });
    }
    host.error("Tallyman does not answer", error);
    throw new APIError("SERVICE_UNAVAILABLE", CODES.USAGE_UNAVAILABLE, { "retry-after": "1" });
  }
}

function isUnknown(error: unknown): boolean {
  return error instanceof TallymanError && error.code === "not_found";
}

function emptyIfUnknown(error: unknown): { data: [] } {
  if (isUnknown(error)) return { data: [] };
  throw error;
}

/** A period has the date of its end, an hour or a day that of its start. */
function entryOf(organizationId: string, granularity: Granularity, { meter, start, end, used }: HistoryRow): Wire<UsageHistoryEntry> {
  const date = granularity === "period" ? (end ?? start) : start;
  return { id: `${organizationId}:${meter}:${start}`, organizationId, metricType: "api", value: used, date, createdAt: end ?? start };
}

/** In constant time, whatever the lengths. */
function isEqual(given: string, expected: string): boolean {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(given), digest(expected));
}
