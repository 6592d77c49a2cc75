"use client";

import type { ReactNode } from "react";
import type { FeatureValue } from "../types.js";
import { Card, type CardProps, Mark, useWriting } from "./card.js";
import { type UsageOptions, useFeature, useResource, useUsageResource } from "./hooks.js";
import { fill } from "./localization.js";

/** Features by their names in the plan. */
export type Features = Record<string, FeatureValue | undefined>;

/** How a feature is shown. */
export interface FeatureConfig {
  /** Its name in the plan. */
  key: string;
  label: string;
  description?: string | undefined;
}

export interface FeatureAccessCardProps extends CardProps {
  /** Data of your own; without it, it is loaded. */
  features?: Features | null | undefined;
  /** What is shown, in this order, also if the plan lacks it; the plan's features unless given. */
  featureConfig?: readonly FeatureConfig[] | undefined;
  /** Shows this feature alone. */
  feature?: string | undefined;
  /** Makes a button, which is shown if a feature is not included. */
  onUpgrade?: (() => void) | undefined;
}

/** Which features the plan includes. */
export function FeatureAccessCard(props: FeatureAccessCardProps) {
  const { texts, format, part } = useWriting(props);
  const loaded = useResource(useUsageResource(props, props.features === undefined));
  const { data } = loaded;
  const features = props.features === undefined ? data && (data.features ?? {}) : (props.features ?? {});
  const shown = features ? shownFeatures(features, props) : [];
  const badge = data?.planId && <span className={part("badge")}>{fill(texts.PLAN, { plan: data.planId })}</span>;
  const access = (value: FeatureValue | undefined) =>
    !value ? texts.NOT_INCLUDED : value === true ? texts.INCLUDED : typeof value === "number" ? format.count(value) : value;
  return (
    <Card
      {...props}
      {...loaded}
      title={texts.FEATURES}
      badge={badge}
      onUpgrade={shown.some(({ key }) => !features?.[key]) && props.onUpgrade}
    >
      {features &&
        (shown.length ? (
          <ul className={part("list")}>
            {shown.map(({ key, label, description }) => (
              <li key={key} className={part("item")}>
                <Mark icon={features[key] ? "ok" : "lock"} />
                <span>
                  {label}
                  {description && <small>{description}</small>}
                </span>
                <b>{access(features[key])}</b>
              </li>
            ))}
          </ul>
        ) : (
          <p className="tallyman-blank">{texts.NO_FEATURES}</p>
        ))}
    </Card>
  );
}

function shownFeatures(features: Features, { featureConfig, feature }: FeatureAccessCardProps): readonly FeatureConfig[] {
  const known = featureConfig ?? Object.keys(features).map(toConfig);
  if (feature === undefined) return known;
  return [known.find(({ key }) => key === feature) ?? toConfig(feature)];
}

/** `advanced_analytics` and `advancedAnalytics` become "Advanced analytics". */
function toConfig(key: string): FeatureConfig {
  const words = key.replace(/[A-Z](?=[a-z])/g, (letter) => ` ${letter.toLowerCase()}`).replace(/[_-]+/g, " ").trim();
  return { key, label: words.charAt(0).toUpperCase() + words.slice(1) };
}

export interface FeatureGateProps extends UsageOptions {
  /** Its name in the plan. */
  feature: string;
  /** What those see who have it. */
  children?: ReactNode;
  /** What those see who do not have it, and everybody if it cannot be known. */
  fallback?: ReactNode;
  /** What is shown until it is known. */
  loading?: ReactNode;
}

/** Shows its children to those whose plan has a feature. It hides, it does not protect: check on the server, too. */
export function FeatureGate({ feature, children, fallback, loading, ...options }: FeatureGateProps) {
  const { enabled, isPending } = useFeature(feature, options);
  return <>{isPending ? loading : enabled ? children : fallback}</>;
}
