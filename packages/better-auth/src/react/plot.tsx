"use client";

import { type KeyboardEvent, type PointerEvent, useState } from "react";
import { cx } from "./card.js";
import type { Format } from "./format.js";
import { type Bucket, ticksTo } from "./history.js";

export type ChartType = "bar" | "line" | "area";

export interface PlotProps {
  buckets: Bucket[];
  chartType: ChartType;
  /** Of the drawing without its labels, in pixels; 200 unless given. */
  height?: number | undefined;
  /** What the chart shows, in a sentence. */
  label: string;
  format: Format;
  /** For a bucket that is pointed to. */
  dateOf(bucket: Bucket): string;
  /** Along the axis. */
  shortDateOf(bucket: Bucket): string;
  className: string;
}

/** A chart of any width: x is in percent and y in pixels, so that text keeps its size and nothing is measured. */
export function Plot(props: PlotProps) {
  const { buckets, label, format, height = 200 } = props;
  const [cursor, setCursor] = useState<number | null>(null);
  const count = buckets.length;
  const last = count - 1;
  const ticks = ticksTo(Math.max(...buckets.map(({ value }) => value)));
  const yOf = (value: number) => height * (1 - Math.max(0, value) / ticks.at(-1)!);
  const move = (target: number) => setCursor(Math.min(last, Math.max(0, target)));
  const point = (event: PointerEvent<HTMLElement>) => {
    const { left, width } = event.currentTarget.getBoundingClientRect();
    move(Math.floor(((event.clientX - left) / width) * count));
  };
  const press = (event: KeyboardEvent) => {
    const at = cursor ?? last;
    const target = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    move(target);
  };

  const at = Math.min(cursor ?? last, last);
  const x = ((at + 0.5) / count) * 100;
  const date = props.dateOf(buckets[at]!);
  const value = format.count(buckets[at]!.value);
  return (
    <div className={props.className} dir="ltr">
      <svg className="tallyman-axis" height={height + 28} aria-hidden="true">
        {ticks.map((tick) => (
          <text key={tick} x="100%" y={yOf(tick) + 4} textAnchor="end">
            {format.compact(tick)}
          </text>
        ))}
      </svg>
      <div
        className="tallyman-plot"
        role="slider"
        tabIndex={0}
        aria-label={label}
        aria-valuemin={1}
        aria-valuemax={count}
        aria-valuenow={at + 1}
        aria-valuetext={`${date}: ${value}`}
        onPointerMove={point}
        onPointerDown={point}
        onPointerLeave={() => setCursor(null)}
        onFocus={() => setCursor((before) => before ?? last)}
        onBlur={() => setCursor(null)}
        onKeyDown={press}
      >
        <svg width="100%" height={height + 28} aria-hidden="true">
          {ticks.map((tick) => (
            <line key={tick} className={tick ? "tallyman-rule" : "tallyman-base"} x2="100%" y1={yOf(tick)} y2={yOf(tick)} />
          ))}
          <Marks {...props} height={height} yOf={yOf} cursor={cursor} />
          <DateLabels {...props} height={height} />
        </svg>
        {cursor !== null && (
          <div className="tallyman-tip" style={{ left: `${x}%`, transform: `translateX(-${x}%)` }}>
            <b>{date}</b>
            {value}
          </div>
        )}
      </div>
    </div>
  );
}

interface MarksProps extends PlotProps {
  height: number;
  yOf(value: number): number;
  cursor: number | null;
}

function Marks({ buckets, chartType, height, yOf, cursor }: MarksProps) {
  const count = buckets.length;
  const width = 100 / count;
  const xOf = (index: number) => (index + 0.5) * width;
  // One point is no line.
  if (chartType === "bar" || count < 2) {
    return buckets.map(({ start, value, open }, index) => (
      <rect
        key={start}
        className={cx("tallyman-column", open && "tallyman-open", index === cursor && "tallyman-pointed")}
        x={`${(index + 0.14) * width}%`}
        width={`${0.72 * width}%`}
        y={yOf(value)}
        height={height - yOf(value)}
        rx={2}
      />
    ));
  }
  const line = buckets.map(({ value }, index) => `${index ? "L" : "M"}${xOf(index)} ${yOf(value)}`).join("");
  return (
    <>
      <svg viewBox={`0 0 100 ${height}`} width="100%" height={height} preserveAspectRatio="none">
        {chartType === "area" && <path className="tallyman-area" d={`${line}V${height}H${xOf(0)}Z`} />}
        <path className="tallyman-line" d={line} />
      </svg>
      {cursor !== null && buckets[cursor] && (
        <>
          <line className="tallyman-cursor" x1={`${xOf(cursor)}%`} x2={`${xOf(cursor)}%`} y2={height} />
          <circle className="tallyman-dot" cx={`${xOf(cursor)}%`} cy={yOf(buckets[cursor].value)} r={4} />
        </>
      )}
    </>
  );
}

/** Dates below the chart: as many as fit, the newest always; every other one gives way in a narrow chart. */
function DateLabels({ buckets, height, shortDateOf }: PlotProps & { height: number }) {
  const count = buckets.length;
  const every = count > 12 ? Math.ceil(count / 6) : 1;
  const last = count - 1;
  return buckets.map((bucket, index) => {
    const place = (last - index) / every;
    if (!Number.isInteger(place)) return null;
    // Below a narrow bar at the edge, a date in its middle would stick out.
    const atEdge = index === last && count > 12;
    return (
      <text
        key={bucket.start}
        className={cx(place % 2 === 1 && "tallyman-wide")}
        x={atEdge ? "100%" : `${((index + 0.5) / count) * 100}%`}
        y={height + 20}
        textAnchor={atEdge ? "end" : "middle"}
      >
        {shortDateOf(bucket)}
      </text>
    );
  });
}
