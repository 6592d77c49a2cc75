"use client";

import { useState } from "react";
import { Card, type CardProps, useWriting } from "./card.js";
import { type Bucket, RANGES, type TimeRange, toBuckets, type UsagePoint } from "./history.js";
import { useHistoryResource, useNow, useResource } from "./hooks.js";
import { fill } from "./localization.js";
import { type ChartType, Plot } from "./plot.js";

export interface UsageHistoryChartProps extends CardProps {
  /** Data of your own, in any order; without it, it is loaded. */
  data?: readonly UsagePoint[] | undefined;
  /** Which range is shown first: 30 days, of data of your own all, unless given. */
  timeRange?: TimeRange | undefined;
  /** What is drawn first: bars unless given. */
  chartType?: ChartType | undefined;
  /** True unless given. */
  showTimeRangeControls?: boolean | undefined;
  /** False unless given. */
  showChartTypeControls?: boolean | undefined;
  /** Of the drawing, in pixels; 200 unless given. */
  height?: number | undefined;
}

/** What was used before: bars, a line or an area, and the same as a table. */
export function UsageHistoryChart(props: UsageHistoryChartProps) {
  const { data, showTimeRangeControls = true, showChartTypeControls } = props;
  const { texts, part } = useWriting(props);
  const [timeRange, setTimeRange] = useState(props.timeRange ?? (data ? "all" : "30d"));
  const [chartType, setChartType] = useState(props.chartType ?? "bar");
  const loaded = useResource(useHistoryResource({ ...props, ...RANGES[timeRange].query }, !data));
  const points = data ?? loaded.data;
  const choice = <T extends string>(label: string, options: Record<T, string>, chosen: T, choose: (option: T) => void) => (
    <div className={part("choice")} role="group" aria-label={label}>
      {(Object.keys(options) as T[]).map((it) => (
        <button key={it} type="button" aria-pressed={it === chosen} onClick={() => choose(it)}>
          {options[it]}
        </button>
      ))}
    </div>
  );
  const ranges = Object.fromEntries(Object.entries(RANGES).map(([it, { text }]) => [it, texts[text]]));
  const types = { bar: texts.BAR, line: texts.LINE, area: texts.AREA };
  const controls = (showTimeRangeControls || showChartTypeControls) && (
    <div className={part("controls")}>
      {showTimeRangeControls && choice(texts.TIME_RANGE, ranges as Record<TimeRange, string>, timeRange, setTimeRange)}
      {showChartTypeControls && choice(texts.CHART_TYPE, types, chartType, setChartType)}
    </div>
  );
  return (
    <Card {...props} {...loaded} title={texts.USAGE_HISTORY} controls={controls}>
      {points && <History {...props} points={points} timeRange={timeRange} chartType={chartType} />}
    </Card>
  );
}

interface HistoryProps extends UsageHistoryChartProps {
  points: readonly UsagePoint[];
  timeRange: TimeRange;
  chartType: ChartType;
}

function History(props: HistoryProps) {
  const { texts, format, part } = useWriting(props);
  const { buckets, step } = toBuckets(props.points, props.timeRange, useNow());
  if (!buckets.length) return <p className="tallyman-blank">{texts.NO_DATA}</p>;

  const total = buckets.reduce((sum, { value }) => sum + value, 0);
  const highest = buckets.reduce((a, b) => (b.value > a.value ? b : a));
  const nameOf = ({ start }: Bucket) => format.date(start, step.full);
  const dateOf = (bucket: Bucket) => (bucket.open ? fill(texts.UNTIL_NOW, { date: nameOf(bucket) }) : nameOf(bucket));
  const facts = { TOTAL: total, HIGHEST: highest.value, AVERAGE: Math.round(total / buckets.length) };
  const label = fill(texts.CHART_SUMMARY, {
    total: format.count(total),
    from: nameOf(buckets[0]!),
    to: nameOf(buckets.at(-1)!),
    highest: format.count(highest.value),
    date: nameOf(highest),
  });
  return (
    <div className={part("content")}>
      <dl className={part("facts")}>
        {Object.entries(facts).map(([name, value]) => (
          <div key={name}>
            <dt>{texts[name as keyof typeof facts]}</dt>
            <dd>{format.count(value)}</dd>
          </div>
        ))}
      </dl>
      <Plot
        {...props}
        buckets={buckets}
        label={label}
        dateOf={dateOf}
        format={format}
        shortDateOf={({ start }) => format.date(start, step.short)}
        className={part("chart")}
      />
      <details className={part("table")}>
        <summary>{texts.SHOW_TABLE}</summary>
        <div role="group" aria-label={texts.USAGE_HISTORY} tabIndex={0}>
          <table>
            <thead>
              <tr>
                <th scope="col">{texts.DATE}</th>
                <th scope="col">{texts.CALLS}</th>
              </tr>
            </thead>
            <tbody>
              {[...buckets].reverse().map((bucket) => (
                <tr key={bucket.start}>
                  <th scope="row">{dateOf(bucket)}</th>
                  <td>{format.count(bucket.value)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </div>
  );
}
