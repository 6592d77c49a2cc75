/** How numbers and dates are written in a locale. Dates are in UTC, so that a server and a browser write the same. */
export interface Format {
  count(value: number): string;
  /** As "12K". */
  compact(value: number): string;
  /** Rounded down, so that 100% means full. */
  percent(part: number, whole: number): string;
  date(date: Date | number, options: Intl.DateTimeFormatOptions): string;
  /** As "in 3 days". */
  until(date: Date, now: number): string;
}

export const DAY: Intl.DateTimeFormatOptions = { month: "short", day: "numeric" };
export const FULL_DAY: Intl.DateTimeFormatOptions = { ...DAY, year: "numeric" };
export const HOUR: Intl.DateTimeFormatOptions = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };

const formats = new Map<string, Format>();

export function formatOf(locale: string): Format {
  let format = formats.get(locale);
  if (!format) formats.set(locale, (format = makeFormat(locale)));
  return format;
}

function makeFormat(locale: string): Format {
  const count = new Intl.NumberFormat(locale);
  const compact = new Intl.NumberFormat(locale, { notation: "compact", maximumFractionDigits: 1 });
  const percent = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 1 });
  const relative = new Intl.RelativeTimeFormat(locale);
  return {
    count: count.format,
    compact: compact.format,
    percent(part, whole) {
      const thousandths = Math.floor((part * 1000) / whole);
      return part > 0 && thousandths < 1 ? `<${percent.format(0.001)}` : percent.format(thousandths / 1000);
    },
    date: (date, options) => new Intl.DateTimeFormat(locale, { ...options, timeZone: "UTC" }).format(date),
    until(date, now) {
      const minutes = (date.getTime() - now) / 60_000;
      if (minutes < 90) return relative.format(Math.ceil(minutes), "minute");
      if (minutes < 48 * 60) return relative.format(Math.floor(minutes / 60), "hour");
      return relative.format(Math.floor(minutes / 1440), "day");
    },
  };
}
