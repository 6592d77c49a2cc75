export { type ApiUsage, ApiUsageCard, type ApiUsageCardProps } from "./api-usage-card.js";
export type { CardProps, Part } from "./card.js";
export { FeatureAccessCard, type FeatureAccessCardProps, type FeatureConfig, FeatureGate, type FeatureGateProps } from "./features.js";
export type { TimeRange, UsagePoint } from "./history.js";
export { type FeatureResult, type UsageOptions, type UsageResult, useFeature, useUsage, useUsageHistory } from "./hooks.js";
export { DEFAULT_LOCALIZATION, type Localization } from "./localization.js";
export type { ChartType } from "./plot.js";
export {
  UsageTrackingProvider as AuthUIProvider,
  type UsageTrackingAuthClient,
  UsageTrackingProvider,
  type UsageTrackingSettings,
} from "./provider.js";
export { UsageDashboard, type UsageDashboardProps } from "./usage-dashboard.js";
export { UsageHistoryChart, type UsageHistoryChartProps } from "./usage-history-chart.js";
export type { FeatureValue, UsageData, UsageHistoryEntry } from "../types.js";
