import type { UsageHistoryQuery } from "../store.js";
import { DAY, FULL_DAY, HOUR } from "./format.js";
import type { Localization } from "./localization.js";

export type TimeRange = "24h" | "7d" | "30d" | "90d" | "1y" | "all";

/** What was used at a time: an entry of the history, or of data of your own. */
export interface UsagePoint {
  date: Date | string | number;
  value: number;
}

/** The calls of an hour, a day or a month of UTC. */
export interface Bucket {
  /** When it begins, in milliseconds. */
  start: number;
  value: number;
  /** It has not ended. */
  open: boolean;
}

interface Step {
  /** The begin of the step that is `offset` steps after that of a time. */
  begin(time: number, offset: number): number;
  /** How it is written below the chart, and in full. */
  short: Intl.DateTimeFormatOptions;
  full: Intl.DateTimeFormatOptions;
}

const fixed = (length: number) => (time: number, offset: number) => (Math.floor(time / length) + offset) * length;

const hour: Step = { begin: fixed(3_600_000), short: HOUR, full: { ...FULL_DAY, ...HOUR } };
const day: Step = { begin: fixed(86_400_000), short: DAY, full: FULL_DAY };
const month: Step = {
  begin(time, offset) {
    const date = new Date(time);
    return Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + offset);
  },
  short: { month: "short" },
  full: { month: "long", year: "numeric" },
};
interface Range {
  text: keyof Localization;
  query: UsageHistoryQuery;
  step?: Step;
  /** In steps. */
  length: number;
}

/** A chart has no more bars than fit a narrow card: ten years of months. */
const MAX_BARS = 120;

export const RANGES: Record<TimeRange, Range> = {
  "24h": { text: "LAST_24_HOURS", query: { granularity: "hour", limit: 24 }, step: hour, length: 24 },
  "7d": { text: "LAST_7_DAYS", query: { granularity: "day", limit: 7 }, step: day, length: 7 },
  "30d": { text: "LAST_30_DAYS", query: { granularity: "day", limit: 30 }, step: day, length: 30 },
  "90d": { text: "LAST_90_DAYS", query: { granularity: "day", limit: 90 }, step: day, length: 90 },
  "1y": { text: "LAST_YEAR", query: { granularity: "day", limit: 366 }, step: month, length: 12 },
  all: { text: "ALL_TIME", query: { granularity: "day", limit: 999 }, length: MAX_BARS },
};

/** The buckets of a range that ends now, or before hydration with the newest point; none if nothing was used in it. */
export function toBuckets(points: readonly UsagePoint[], timeRange: TimeRange, now: number | null): { buckets: Bucket[]; step: Step } {
  const range = RANGES[timeRange];
  const known = points.map(({ date, value }) => ({ time: new Date(date).getTime(), value })).filter(({ time }) => time > 0);
  const times = known.map(({ time }) => time);
  const end = Math.max(...times, now ?? 0);
  const oldest = Math.min(...times);
  const step = range.step ?? (day.begin(oldest, MAX_BARS) > end ? day : month);
  const first = Math.max(step.begin(end, 1 - range.length), range.step ? 0 : step.begin(oldest, 0));
  const buckets: Bucket[] = [];
  if (!known.length) return { buckets, step };
  const values = new Map<number, number>();
  for (const { time, value } of known) {
    const start = step.begin(time, 0);
    values.set(start, (values.get(start) ?? 0) + value);
  }
  for (let start = first; start <= end; start = step.begin(start, 1)) {
    buckets.push({ start, value: values.get(start) ?? 0, open: now !== null && step.begin(start, 1) > now });
  }
  return { buckets: buckets.some(({ value }) => value) ? buckets : [], step };
}

/** Round values from 0 to at least the highest, at most five. */
export function ticksTo(highest: number): number[] {
  const rough = Math.max(highest, 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].map((it) => it * power).find((it) => it >= rough)!);
  return Array.from({ length: Math.ceil(Math.max(highest, 1) / step) + 1 }, (_, index) => index * step);
}
