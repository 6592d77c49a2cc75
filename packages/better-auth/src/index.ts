// The plugin for Better Auth's server: counts the calls of organizations, and stops them at their limits.

import type { AuthContext, BetterAuthPlugin } from "better-auth";
import { createTallyman, type Tallyman, type TallymanOptions } from "@tallyman/client";
import { CircuitBreaker } from "./breaker.js";
import { CountBuffer } from "./count-buffer.js";
import { Callbacks } from "./callbacks.js";
import { getUsage, getUsageHistory, resetExpired, resetUsage, updateLimits } from "./endpoints.js";
import { USAGE_TRACKING_ERROR_CODES } from "./errors.js";
import { countingHook } from "./hooks.js";
import { Host } from "./host.js";
import { Provisioner } from "./provisioner.js";
import { resolveSettings, type Settings, type UsageTrackingOptions } from "./settings.js";
import { Tracker } from "./tracker.js";
import type { UsageData, UsageHistoryEntry } from "./types.js";
import { usageTrackingWebhook } from "./webhook.js";

export { USAGE_TRACKING_ERROR_CODES, type UsageTrackingErrorCode } from "./errors.js";
export type { AdminAction, AuthCall, LimitContext, ResetContext, UsageTrackingOptions } from "./settings.js";
export type { FeatureValue, ResetMode, ResetPeriod, UsageData, UsageHistoryEntry, Wire } from "./types.js";

/** Milliseconds for a batch of waiting counts, which no call waits for. */
const BATCH_TIMEOUT = 5_000;
/** Milliseconds that a call waits for Tallyman, unless the client's options say otherwise. */
const TIMEOUT = 300;

/**
 * The plugin: counts the calls of sessions with an active organization, and refuses those beyond its limit with 429.
 *
 * Place it after plugins that make sessions in hooks of their own, such as `apiKey`.
 *
 * @throws {TypeError} if an option is invalid
 */
export function usageTracking(options: UsageTrackingOptions = {}) {
  const settings = resolveSettings(options);
  const host = new Host();
  const parts = assemble(settings, host);
  return {
    id: "usage-tracking",
    init(context: AuthContext) {
      host.context = context;
      if (parts.configurationError) host.error("calls are not counted", parts.configurationError);
    },
    hooks: { before: [countingHook(parts)] },
    endpoints: {
      getUsage: getUsage(parts),
      getUsageHistory: getUsageHistory(parts),
      resetUsage: resetUsage(parts),
      updateLimits: updateLimits(parts),
      resetExpired: resetExpired(parts),
      usageTrackingWebhook: usageTrackingWebhook(parts),
    },
    $ERROR_CODES: USAGE_TRACKING_ERROR_CODES,
    $Infer: {} as { UsageData: UsageData; UsageHistoryEntry: UsageHistoryEntry },
  } satisfies BetterAuthPlugin;
}

/** Makes the parts and connects them. */
function assemble(settings: Settings, host: Host) {
  const { configurationError, live, batches, timeout } = connect(settings.tallyman);
  const provisioner = new Provisioner(live, settings, host);
  const callbacks = new Callbacks(settings, live, host);
  const breaker = new CircuitBreaker(
    (error) => host.warn(`Tallyman does not answer, and calls do not wait for it: ${error instanceof Error ? error.message : String(error)}`),
    () => host.warn("Tallyman answers again"),
  );
  const buffer = new CountBuffer({
    tallyman: batches,
    meter: settings.meter,
    interval: settings.flushInterval,
    provisioner,
    breaker,
    host,
    onResult: (result) => tracker.afterAnswer(result),
  });
  const tracker: Tracker = new Tracker({ settings, tallyman: live, provisioner, breaker, buffer, callbacks, host, timeout });
  return { settings, tallyman: live, provisioner, tracker, buffer, callbacks, host, configurationError };
}

interface Connection {
  /** For calls, and for what people wait for. */
  live: Tallyman;
  /** For batches of counts that waited. */
  batches: Tallyman;
  /** Milliseconds that a call waits, all its requests together. */
  timeout: number;
  /** Why there is no connection; both clients fail with it. */
  configurationError?: unknown;
}

function connect(tallyman: Tallyman | TallymanOptions = {}): Connection {
  if ("consume" in tallyman) return { live: tallyman, batches: tallyman, timeout: TIMEOUT };
  const timeout = tallyman.timeout ?? TIMEOUT;
  try {
    const live = createTallyman({ retries: 1, ...tallyman, timeout });
    const batches = createTallyman({ ...tallyman, timeout: Math.max(timeout, BATCH_TIMEOUT), retries: 0 });
    return { live, batches, timeout };
  } catch (configurationError) {
    // An auth server must start, and be built, without it.
    const failing = new Proxy({} as Tallyman, { get: () => () => Promise.reject(configurationError) });
    return { live: failing, batches: failing, timeout, configurationError };
  }
}
