"use client";

import type { UsageData } from "../types.js";
import { Card, type CardProps, type Icon, Mark, useWriting } from "./card.js";
import { FULL_DAY, HOUR } from "./format.js";
import { useNow, useResource, useUsageResource } from "./hooks.js";
import { fill, type Localization } from "./localization.js";

type Api = UsageData["api"];

/** Calls in a period, as data of your own. */
export interface ApiUsage {
  current?: number | undefined;
  /** Unlimited if it is null, `Infinity` or not given. */
  limit?: number | null | undefined;
  /** Null or not given if the period does not end by itself. */
  resetDate?: Date | string | number | null | undefined;
}

/** Without `current` the usage is loaded. */
export interface ApiUsageCardProps extends CardProps, ApiUsage {
  /** The percentage of the limit from which the card warns; 80 unless given. */
  warningThreshold?: number | undefined;
  /** Makes a button, which is shown from the warning on. */
  onUpgrade?: (() => void) | undefined;
}

/** Calls in the running period, how many are left, and when it ends. */
export function ApiUsageCard(props: ApiUsageCardProps) {
  const { current, limit, resetDate, warningThreshold = 80, onUpgrade } = props;
  const { texts, part } = useWriting(props);
  const loaded = useResource(useUsageResource(props, current === undefined));
  const api = current === undefined ? loaded.data?.api : toApi(current, limit, resetDate);
  const [icon, state] = api ? stateOf(api, warningThreshold) : (["ok", "LOADING"] as const);
  const badge = api && (
    <Mark icon={icon} className={part("badge")}>
      {texts[state]}
    </Mark>
  );
  return (
    <Card
      {...props}
      {...loaded}
      title={texts.API_CALLS}
      badge={badge}
      onUpgrade={["warning", "full", "over", "none"].includes(icon) && onUpgrade}
    >
      {api && <Meter {...props} api={api} icon={icon} notch={warningThreshold} />}
    </Card>
  );
}

function toApi(current: number, limit: ApiUsage["limit"], resetDate: ApiUsage["resetDate"]): Api {
  const date = new Date(resetDate ?? NaN);
  return { current: Math.max(0, current || 0), limit: Math.max(0, limit ?? Infinity), resetDate: Number.isNaN(+date) ? null : date };
}

function stateOf({ current, limit }: Api, warningThreshold: number): [Icon, keyof Localization] {
  if (limit === Infinity) return ["unlimited", "UNLIMITED"];
  if (current > limit) return ["over", "OVER_LIMIT"];
  if (limit === 0) return ["none", "NOT_INCLUDED"];
  if (current === limit) return ["over", "LIMIT_REACHED"];
  const percent = (current / limit) * 100;
  if (percent < warningThreshold) return ["ok", "WITHIN_LIMIT"];
  return percent < 95 ? ["warning", "WARNING"] : ["full", "NEARLY_FULL"];
}

interface MeterProps extends CardProps {
  api: Api;
  icon: Icon;
  /** Where the warning begins, in percent. */
  notch: number;
}

function Meter({ api, icon, notch, ...props }: MeterProps) {
  const { texts, format, part } = useWriting(props);
  const { current, limit } = api;
  const limited = limit > 0 && limit < Infinity;
  const count = format.count(current);
  const ofLimit = limit < Infinity ? fill(texts.OF_LIMIT, { limit: format.count(limit) }) : texts.OF_NO_LIMIT;
  const percent = limited && format.percent(current, limit);
  return (
    <div className={part("content")}>
      <p className={part("value", count.length > 13 && "tallyman-long")}>
        <strong>{count}</strong>
        <span>{ofLimit}</span>
        {percent && <b>{percent}</b>}
      </p>
      {percent ? (
        <div
          role="meter"
          aria-label={texts.API_CALLS}
          aria-valuemin={0}
          aria-valuemax={limit}
          aria-valuenow={Math.min(current, limit)}
          aria-valuetext={`${count} ${ofLimit}, ${percent}`}
        >
          <Bar api={api} notch={notch} className={part("bar", `tallyman-${icon}`)} />
        </div>
      ) : (
        <svg className={part("bar", "tallyman-empty")} aria-hidden="true" />
      )}
      <div className={part("description")}>
        <p>{leftText(limit - current)}</p>
        {api.resetDate && <ResetDate {...props} date={api.resetDate} />}
      </div>
    </div>
  );

  function leftText(left: number) {
    if (limit === Infinity) return texts.NEVER_REFUSED;
    if (left > 0) return fill(texts.LEFT, { count: format.count(left) });
    if (left < 0) return fill(texts.OVER_BY, { count: format.count(-left) });
    return limit ? texts.NONE_LEFT : texts.NONE_INCLUDED;
  }
}

/** The used part of the limit; above it, the limit's part of what is used. Widths are attributes, which a strict CSP allows. */
function Bar({ api: { current, limit }, notch, className }: { api: Api; notch: number; className: string }) {
  const over = current > limit;
  // What is not full does not look full.
  const used = over ? (limit / current) * 100 : current === limit ? 100 : Math.min((current / limit) * 100, 98.5);
  return (
    <svg className={className} aria-hidden="true">
      <rect className="tallyman-used" width={`${used}%`} height="100%" />
      {over && <rect className="tallyman-more" x={`${used}%`} width={`${100 - used}%`} height="100%" />}
      <rect className="tallyman-notch" x={`${over ? used : notch}%`} width="2" height="100%" />
    </svg>
  );
}

function ResetDate({ date, ...props }: CardProps & { date: Date }) {
  const { texts, format } = useWriting(props);
  const now = useNow();
  const day = format.date(date, FULL_DAY);
  const text =
    now === null
      ? fill(texts.RESETS_ON, { date: day })
      : +date > now
        ? fill(texts.RESETS_IN, { date: day, relative: format.until(date, now) })
        : fill(texts.PERIOD_ENDED, { date: day });
  return (
    <p>
      <time dateTime={date.toISOString()} title={`${format.date(date, { ...FULL_DAY, ...HOUR })} UTC`}>
        {text}
      </time>
    </p>
  );
}
