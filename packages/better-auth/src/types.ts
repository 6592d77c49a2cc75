/** The shapes that the server's endpoints, the client and the components share. */

/** A feature of a plan: a flag, a number or a text. */
export type FeatureValue = boolean | number | string;

export type ResetMode = "lazy" | "scheduled" | "manual";
export type ResetPeriod = "hourly" | "daily" | "weekly" | "monthly" | "yearly";

/** The running period of an organization. */
export interface UsageData {
  api: {
    current: number;
    /** `Infinity` where unlimited. */
    limit: number;
    /** Null if the period does not end by itself. */
    resetDate: Date | null;
  };
  /** Null if the plan has none. */
  features: Record<string, FeatureValue> | null;
  planId: string;
  resetMode: ResetMode;
  resetPeriod: ResetPeriod;
}

/** A period that has ended or was reset, or an hour or day of one. */
export interface UsageHistoryEntry {
  /** Stable for a period. */
  id: string;
  organizationId: string;
  metricType: "api";
  /** Units counted. */
  value: number;
  date: Date;
  createdAt: Date;
}

/** What JSON carries of a type: instants as text, and null where a limit is infinite. */
export type Wire<T> = T extends Date ? string : T extends object ? { [K in keyof T]: K extends "limit" ? number | null : Wire<T[K]> } : T;
