"use client";

import { type ApiUsage, ApiUsageCard } from "./api-usage-card.js";
import { Card, type CardProps, useWriting } from "./card.js";
import { FeatureAccessCard, type FeatureConfig, type Features } from "./features.js";
import type { UsagePoint } from "./history.js";
import { useResource, useUsageResource } from "./hooks.js";
import { UsageHistoryChart } from "./usage-history-chart.js";

export interface UsageDashboardProps extends CardProps {
  /** Data of your own; without it, everything is loaded. */
  apiUsage?: ApiUsage | undefined;
  /** With `apiUsage`: no card unless given. */
  features?: Features | null | undefined;
  featureConfig?: readonly FeatureConfig[] | undefined;
  /** With `apiUsage`: no chart unless given. */
  history?: readonly UsagePoint[] | undefined;
  warningThreshold?: number | undefined;
  onUpgrade?: (() => void) | undefined;
  /** Cards next to each other where there is room, or one below the other; `grid` unless given. */
  layout?: "grid" | "stack" | undefined;
}

/** All of it: the running period, the plan's features where it has some, and the history. */
export function UsageDashboard({ apiUsage, history, layout = "grid", className, onUpgrade, ...props }: UsageDashboardProps) {
  const { texts, part } = useWriting(props);
  const loaded = useResource(useUsageResource(props, !apiUsage));
  const hasFeatures = apiUsage ? props.features : props.featureConfig || Object.keys(loaded.data?.features ?? {}).length > 0;
  const failed = !apiUsage && !loaded.data && loaded.error;
  return (
    <div className={part("dashboard", `tallyman-${layout}`, className)}>
      {failed ? (
        <Card {...props} {...loaded} title={texts.API_CALLS} />
      ) : (
        <>
          <ApiUsageCard {...props} onUpgrade={onUpgrade} {...(apiUsage && { current: 0, ...apiUsage })} />
          {hasFeatures && <FeatureAccessCard {...props} onUpgrade={onUpgrade} />}
          {(history || !apiUsage) && <UsageHistoryChart {...props} data={history} showChartTypeControls />}
        </>
      )}
    </div>
  );
}
