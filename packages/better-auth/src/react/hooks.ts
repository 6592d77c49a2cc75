"use client";

import { useCallback, useSyncExternalStore } from "react";
import { type Loaded, PENDING, type Resource } from "../resource.js";
import type { UsageHistoryQuery, UsageTrackingAtoms } from "../store.js";
import type { FeatureValue, UsageData, UsageHistoryEntry } from "../types.js";
import { type UsageTrackingAuthClient, useSettings } from "./provider.js";

/** Whose usage, where it is not that of the provider. */
export interface UsageOptions {
  authClient?: UsageTrackingAuthClient | undefined;
  /** The active organization unless given. */
  organizationId?: string | undefined;
}

/** As the hooks of Better Auth: data stays while it is loaded again. */
export interface UsageResult<T> extends Loaded<T> {
  refetch(): Promise<void>;
}

/** The running period of an organization. */
export function useUsage(options: UsageOptions = {}): UsageResult<UsageData> {
  return useResource(useUsageResource(options, true));
}

/** What an organization used before, newest first. */
export function useUsageHistory(options: UsageOptions & UsageHistoryQuery = {}): UsageResult<UsageHistoryEntry[]> {
  return useResource(useHistoryResource(options, true));
}

/** A feature of an organization's plan. */
export interface FeatureResult extends Omit<UsageResult<UsageData>, "data"> {
  /** Whether the value is true, not zero, or a text that is not empty. False until it is known. */
  enabled: boolean;
  /** Undefined if the plan does not have it, and until it is known. */
  value: FeatureValue | undefined;
}

/** Whether an organization has a feature, such as `advanced_analytics`. */
export function useFeature(feature: string, options: UsageOptions = {}): FeatureResult {
  const { data, ...rest } = useUsage(options);
  const value = data?.features?.[feature];
  return { ...rest, enabled: Boolean(value), value };
}

/** What {@link useResource} reads; null unless it is needed, so that components with data of their own need no client. */
export function useUsageResource(options: UsageOptions, needed: boolean): Resource<UsageData> | null {
  const { authClient, organizationId } = useSettings(options);
  return needed ? atomsOf(authClient).usageOf(organizationId) : null;
}

export function useHistoryResource(options: UsageOptions & UsageHistoryQuery, needed: boolean): Resource<UsageHistoryEntry[]> | null {
  const { authClient, organizationId } = useSettings(options);
  return needed ? atomsOf(authClient).historyOf({ ...options, organizationId }) : null;
}

export function useResource<T>(resource: Resource<T> | null): UsageResult<T> {
  const subscribe = useCallback((notify: () => void) => resource?.state.listen(notify) ?? (() => {}), [resource]);
  const state = useSyncExternalStore<Loaded<T>>(subscribe, () => resource?.state.value ?? PENDING, () => PENDING);
  return { ...state, refetch: async () => resource?.refetch() };
}

/** The time in milliseconds, to the minute; null on a server and until the page is hydrated. */
export function useNow(): number | null {
  return useSyncExternalStore(everyMinute, () => Math.floor(Date.now() / 60_000) * 60_000, () => null);
}

function everyMinute(notify: () => void) {
  const timer = setInterval(notify, 60_000);
  return () => clearInterval(timer);
}

function atomsOf(authClient: UsageTrackingAuthClient | undefined): UsageTrackingAtoms {
  if (!authClient) {
    throw new Error("No auth client: pass data or authClient to the component, or put <UsageTrackingProvider authClient={…}> above it");
  }
  const atoms = authClient.$usageTracking;
  // A client without the plugin makes a call of any unknown name.
  if (typeof atoms?.usageAtom !== "object") throw new Error("The auth client lacks the plugin usageTrackingClient()");
  return atoms;
}
