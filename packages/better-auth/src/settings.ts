// The options of the plugin, and what they become.

import type { Session, User } from "better-auth";
import type { Tallyman, TallymanOptions } from "@tallyman/client";
import type { ResetMode, ResetPeriod } from "./types.js";

/** A call of a Better Auth endpoint. */
export interface AuthCall {
  /** The endpoint's path without the base path and with its parameters' names, such as `/organization/list`. */
  path: string;
  method: string;
  /** Undefined for calls of `auth.api`. */
  request: Request | undefined;
  organizationId: string;
}

/** The argument of `onUsageWarning` and `onLimitExceeded`. */
export interface LimitContext {
  organizationId: string;
  metricType: "api";
  /** The count at the crossing; for a refusal, the count that it found. */
  current: number;
  limit: number;
  /** Null if Tallyman could not be asked. */
  planId: string | null;
  /** Null if the period does not end by itself. */
  resetDate: Date | null;
}

/** The argument of `onUsageReset`. */
export interface ResetContext {
  organizationId: string;
  metricType: "api";
  /** What ended the period: the first call after it, the calendar, or a reset. */
  resetType: ResetMode;
  /** The count of the period that has ended; null if Tallyman could not be asked. */
  previousCount: number | null;
  /** Of the new period; null if the period does not end by itself. */
  resetDate: Date | null;
}

/** What a platform administrator may do that a member may not. */
export type AdminAction = "read" | "reset" | "update-limits";

export interface UsageTrackingOptions {
  /**
   * What ends a period: the first call after it (`lazy`), the calendar (`scheduled`), or only a reset (`manual`).
   *
   * This and the next four apply to organizations that Tallyman does not know yet; what administrators change later stays.
   * What is absent is inherited from Tallyman's plans and settings.
   */
  resetMode?: ResetMode;
  resetPeriod?: ResetPeriod;
  /** 1 to 31 for monthly and yearly periods, 0 (Sunday) to 6 for weekly ones. */
  resetDay?: number;
  /** Calls included in a period; `Infinity` is unlimited. */
  defaultApiLimit?: number;
  /** A plan that exists in Tallyman. */
  defaultPlanId?: string;
  /** Beyond the limit, `hard` refuses calls; `soft` counts them as overage. Tallyman's default is `hard`. */
  enforcement?: "hard" | "soft";

  /** For `POST /usage-tracking/reset-expired`; by default the environment variable `USAGE_TRACKING_API_KEY`. Without one it refuses every call. */
  apiKey?: string;
  /** Called once in a period for each percentage of `warnAt` (80 and 100 unless changed in Tallyman) that the count reaches. */
  onUsageWarning?(context: LimitContext & { percentage: number }): unknown;
  /** Called once in a period, for the first call beyond the limit: refused by a hard one, overage of a soft one. */
  onLimitExceeded?(context: LimitContext): unknown;
  /** Called for resets by this plugin and for `lazy` periods; with `webhookSecret`, for every period that ends. */
  onUsageReset?(context: ResetContext): unknown;

  /**
   * A client, or its options; by default `TALLYMAN_URL` and `TALLYMAN_API_KEY` say where Tallyman is.
   *
   * A call waits for Tallyman for `timeout` milliseconds, by default 300, whatever it takes.
   */
  tallyman?: Tallyman | TallymanOptions;
  /** The meter to count, by default `api`. */
  meter?: string;
  /** `exact` asks Tallyman before each call is answered; `async` counts in memory and sends the counts every `flushInterval`. */
  mode?: "exact" | "async";
  /** What happens to a call while Tallyman does not answer; by default `allow`, and the call is counted later. */
  whenUnavailable?: "allow" | "refuse" | ((call: AuthCall) => "allow" | "refuse");
  /** The units of a call, an integer; 0 is not counted. By default 1. */
  amount?(call: AuthCall): number;
  /** Paths that are counted but never refused, in addition to those of signing in and out; `/a/*` matches what begins with `/a/`. */
  neverRefuse?: string[];
  /** Whether calls of `auth.api` that pass a session's headers are counted too. */
  countServerCalls?: boolean;
  /** Who, besides users with an admin role of the plugin `admin`, may do what administrators may. */
  isAdmin?(context: { user: User; organizationId: string; action: AdminAction }): boolean | Promise<boolean>;
  /** Milliseconds between flushes of counts that wait in memory, by default 1000. */
  flushInterval?: number;
  /** The secret of a Tallyman webhook to `/usage-tracking/webhook`; the callbacks are then called for its events alone. */
  webhookSecret?: string;
}

/** The options with their defaults. */
export type Settings = ReturnType<typeof resolveSettings>;

/** What a session consists of. */
export interface AuthSession {
  session: Session & { activeOrganizationId?: string | null };
  user: User & { role?: string | null };
}

/** Users over the limit can still sign in and out, change the organization, pay, and delete their account. */
const NEVER_REFUSED = [
  "/sign-in/*", "/sign-up/*", "/sign-out", "/callback/*", "/oauth2/callback/*", "/sso/*", "/two-factor/*", "/email-otp/*",
  "/phone-number/*", "/magic-link/*", "/passkey/*", "/multi-session/*", "/verify-email", "/send-verification-email",
  "/request-password-reset", "/reset-password", "/reset-password/*", "/change-password", "/set-password", "/verify-password",
  "/revoke-session", "/revoke-sessions", "/revoke-other-sessions", "/delete-user", "/delete-user/*",
  "/organization/set-active", "/organization/list", "/subscription/*",
];

/**
 * Checks the options and adds the defaults.
 *
 * @throws {TypeError} if an option is invalid; the message names it
 */
export function resolveSettings(options: UsageTrackingOptions) {
  const { resetMode, resetPeriod, resetDay, defaultApiLimit, defaultPlanId, enforcement } = options;
  const { meter = "api", flushInterval = 1000, neverRefuse = [] } = options;
  const unlimited = defaultApiLimit === Infinity;
  if (defaultApiLimit !== undefined && !unlimited) requireInteger("defaultApiLimit", defaultApiLimit, 0, Number.MAX_SAFE_INTEGER);
  requireInteger("flushInterval", flushInterval, 1, 3_600_000);
  for (const path of neverRefuse) {
    if (!path.startsWith("/")) throw new TypeError(`usageTracking: a path of neverRefuse begins with "/"; got "${path}"`);
  }
  const limit = { ...(defaultApiLimit === undefined ? {} : { limit: unlimited ? null : defaultApiLimit }), ...(enforcement && { enforcement }) };
  return {
    ...options,
    meter,
    flushInterval,
    apiKey: options.apiKey ?? process.env.USAGE_TRACKING_API_KEY,
    mode: options.mode ?? "exact",
    neverRefuse: [...NEVER_REFUSED, ...neverRefuse],
    /** What an organization that Tallyman does not know starts with. */
    defaults: {
      ...(resetMode && { resetMode }),
      ...(resetPeriod && { resetPeriod }),
      ...(resetDay === undefined ? {} : { resetDay }),
      ...(defaultPlanId && { planId: defaultPlanId }),
      ...(Object.keys(limit).length > 0 && { limits: { [meter]: limit } }),
    },
  };
}

function requireInteger(name: string, value: number, min: number, max: number): void {
  if (!Number.isInteger(value) || value < min || value > max) {
    throw new TypeError(`usageTracking: ${name} must be an integer from ${min} to ${max}; got ${value}`);
  }
}
