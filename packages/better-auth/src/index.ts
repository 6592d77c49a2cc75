export { USAGE_TRACKING_ERROR_CODES, type UsageTrackingErrorCode } from "./errors.js";
export type { FeatureValue, ResetMode, ResetPeriod, UsageData, UsageHistoryEntry, Wire } from "./types.js";
