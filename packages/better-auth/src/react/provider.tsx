"use client";

import { createContext, type ReactNode, useContext, useMemo } from "react";
import type { UsageTrackingAtoms } from "../store.js";
import type { Localization } from "./localization.js";

/** A client of Better Auth with `usageTrackingClient()` among its plugins. */
export interface UsageTrackingAuthClient {
  $usageTracking: UsageTrackingAtoms;
}

/** What a provider gives to the components below it; each component takes the same as props of its own. */
export interface UsageTrackingSettings {
  authClient?: UsageTrackingAuthClient | undefined;
  /** The active organization unless given. */
  organizationId?: string | undefined;
  /** Texts that replace those of `DEFAULT_LOCALIZATION`. */
  localization?: Partial<Localization> | undefined;
  /** A BCP 47 tag, for numbers and dates; `en` unless given, as the texts. */
  locale?: string | undefined;
}

const Settings = createContext<UsageTrackingSettings>({});

/** Gives the client of Better Auth, and what else they have in common, to the components and hooks below it. */
export function UsageTrackingProvider(props: UsageTrackingSettings & { children?: ReactNode }) {
  return <Settings.Provider value={useSettings(props)}>{props.children}</Settings.Provider>;
}

/** The settings of the providers above, with those that are given here. */
export function useSettings({ authClient, organizationId, localization, locale }: UsageTrackingSettings): UsageTrackingSettings {
  const outer = useContext(Settings);
  return useMemo(
    () => ({
      authClient: authClient ?? outer.authClient,
      organizationId: organizationId ?? outer.organizationId,
      localization: { ...outer.localization, ...localization },
      locale: locale ?? outer.locale,
    }),
    [outer, authClient, organizationId, localization, locale],
  );
}
