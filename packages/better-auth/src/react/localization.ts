/** The texts of the components. `{…}` stands for what is filled in. */
export const DEFAULT_LOCALIZATION = {
  API_CALLS: "API calls",
  OF_LIMIT: "of {limit} calls",
  OF_NO_LIMIT: "calls, no limit",
  LEFT: "{count} left",
  NONE_LEFT: "None left",
  OVER_BY: "{count} over the limit",
  NONE_INCLUDED: "The plan includes none",
  NEVER_REFUSED: "Counted, never refused",
  RESETS_ON: "Resets on {date}",
  RESETS_IN: "Resets {relative}, on {date}",
  PERIOD_ENDED: "The period ended on {date}; the next call begins a new one",
  UPGRADE_PLAN: "Upgrade plan",

  WITHIN_LIMIT: "Within limit",
  WARNING: "Warning",
  NEARLY_FULL: "Nearly full",
  LIMIT_REACHED: "Limit reached",
  OVER_LIMIT: "Over limit",
  UNLIMITED: "Unlimited",

  FEATURES: "Features",
  PLAN: "Plan {plan}",
  INCLUDED: "Included",
  NOT_INCLUDED: "Not included",
  NO_FEATURES: "This plan lists no features",

  USAGE_HISTORY: "Usage history",
  TIME_RANGE: "Time range",
  LAST_24_HOURS: "24 h",
  LAST_7_DAYS: "7 d",
  LAST_30_DAYS: "30 d",
  LAST_90_DAYS: "90 d",
  LAST_YEAR: "1 y",
  ALL_TIME: "All",
  CHART_TYPE: "Chart type",
  BAR: "Bars",
  LINE: "Line",
  AREA: "Area",
  TOTAL: "Total",
  HIGHEST: "Highest",
  AVERAGE: "Average",
  UNTIL_NOW: "{date}, until now",
  CALLS: "Calls",
  DATE: "Date (UTC)",
  CHART_SUMMARY: "{total} calls from {from} to {to}; the most, {highest}, on {date}",
  SHOW_TABLE: "Show as a table",
  NO_DATA: "Nothing used in this range",

  LOADING: "Loading",
  LOAD_FAILED: "Usage could not be loaded",
  TRY_AGAIN: "Try again",
  ERROR_SIGNED_OUT: "Sign in to see it.",
  ERROR_NO_ORGANIZATION: "No organization is active. Choose one, or create one.",
  ERROR_NOT_A_MEMBER: "You are not a member of this organization.",
  ERROR_UNAVAILABLE: "The server did not answer as expected. Try again in a moment.",
};

export type Localization = Record<keyof typeof DEFAULT_LOCALIZATION, string>;

/** Puts values into a text. */
export const fill = (text: string, values: Record<string, string>): string =>
  text.replace(/\{(\w+)\}/g, (placeholder, name: string) => values[name] ?? placeholder);
