import type { BetterAuthClientPlugin } from "better-auth";
import { USAGE_TRACKING_ERROR_CODES } from "./errors.js";
import { createStore, type UsageHistoryQuery } from "./store.js";
import type { ResetMode, ResetPeriod, UsageData, UsageHistoryEntry, Wire } from "./types.js";

export { USAGE_TRACKING_ERROR_CODES, type UsageTrackingErrorCode } from "./errors.js";
export type { Loaded, Resource, UsageError } from "./resource.js";
export type { UsageHistoryQuery, UsageTrackingAtoms } from "./store.js";
export type { FeatureValue, ResetMode, ResetPeriod, UsageData, UsageHistoryEntry } from "./types.js";

type Fetch = Parameters<NonNullable<BetterAuthClientPlugin["getActions"]>>[0];
/** Options of Better Auth's fetch, such as `headers` where a server calls for a user. */
export type FetchOptions = NonNullable<Parameters<Fetch>[1]>;

/** `authClient.usageTracking`. Success is the bare data; a failure throws a `BetterFetchError`. */
export interface UsageTrackingActions {
  /** The running period of an organization, the active one unless given. */
  getUsage(query?: { organizationId?: string | undefined }, options?: FetchOptions): Promise<UsageData>;
  /** What was used before, newest first. */
  getUsageHistory(query?: UsageHistoryQuery, options?: FetchOptions): Promise<{ history: UsageHistoryEntry[] }>;
  /** Sets the count to 0, in a new period. For administrators of the platform. */
  resetUsage(body: { organizationId: string; resetApi?: boolean }, options?: FetchOptions): Promise<{ success: boolean }>;
  /** Changes what is given; a limit of null is unlimited. For administrators of the platform. */
  updateLimits(body: LimitsUpdate, options?: FetchOptions): Promise<{ success: boolean }>;
}

/** What {@link UsageTrackingActions.updateLimits} changes. */
export interface LimitsUpdate {
  organizationId: string;
  apiLimit?: number | null;
  enforcement?: "hard" | "soft";
  resetMode?: ResetMode;
  resetPeriod?: ResetPeriod;
}

/** The plugin for `createAuthClient`: makes `authClient.usageTracking` and `authClient.$usageTracking`. */
export const usageTrackingClient = () => {
  let called = () => {};
  const answered = ({ request }: { request: { url: string | URL } }) => {
    if (!NOT_COUNTED.test(String(request.url))) called();
  };
  return {
    id: "usage-tracking",
    // Not the type of the server's plugin: its endpoints would take the place of the actions.
    $InferServerPlugin: {} as { id: "usage-tracking"; $ERROR_CODES: typeof USAGE_TRACKING_ERROR_CODES },
    $ERROR_CODES: USAGE_TRACKING_ERROR_CODES,
    fetchPlugins: [{ id: "usage-tracking", name: "Usage tracking", hooks: { onSuccess: answered, onError: answered } }],
    getActions($fetch: Fetch, $store: { atoms: Record<string, any> }) {
      const actions = createActions($fetch, () => store.changed());
      const store = createStore(actions.getUsage, async (query) => (await actions.getUsageHistory(query)).history);
      called = store.called;
      $store.atoms.$sessionSignal.listen(store.sessionChanged);
      return { usageTracking: actions, $usageTracking: store.atoms };
    },
  } satisfies BetterAuthClientPlugin;
};

/** Calls that the server's plugin never counts. */
const NOT_COUNTED = /\/(usage-tracking\/[a-z-]+|get-session|token|jwks|ok|error)(\?|$)/;

function createActions($fetch: Fetch, changed: () => void): UsageTrackingActions {
  const read = async <T>(path: string, query: object = {}, options?: FetchOptions) => {
    const given = Object.entries(query).filter(([, value]) => value !== undefined);
    const call = { ...options, method: "GET", query: Object.fromEntries(given), throw: true } as const;
    return (await $fetch(`/usage-tracking/${path}`, call)) as Wire<T>;
  };
  const write = async (path: string, body: object, options?: FetchOptions) => {
    const answer = await $fetch(`/usage-tracking/${path}`, { ...options, method: "POST", body, throw: true });
    changed();
    return answer as { success: boolean };
  };
  return {
    async getUsage(query, options) {
      const usage = await read<UsageData>("get-usage", query, options);
      const { current, limit, resetDate } = usage.api;
      return { ...usage, api: { current, limit: limit ?? Infinity, resetDate: resetDate ? new Date(resetDate) : null } };
    },
    async getUsageHistory(query, options) {
      const { history } = await read<{ history: UsageHistoryEntry[] }>("get-usage-history", query, options);
      return { history: history.map((it) => ({ ...it, date: new Date(it.date), createdAt: new Date(it.createdAt) })) };
    },
    resetUsage: (body, options) => write("reset", { resetApi: true, ...body }, options),
    updateLimits: (body, options) => write("update-limits", body, options),
  };
}
