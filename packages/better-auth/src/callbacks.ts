// Calls what the application wants to be told of: from the answers to counted calls, or, with a webhook, from its events alone.

import type { HistoryRow, MeterUsage, Tallyman, TallymanEvent } from "@tallyman/client";
import type { Host } from "./host.js";
import type { LimitContext, ResetContext, Settings } from "./settings.js";

type Crossing = Pick<LimitContext, "organizationId" | "current" | "limit"> & { resetDate: string | null };
type CallbackName = "onUsageWarning" | "onLimitExceeded" | "onUsageReset";

export class Callbacks {
  readonly #settings: Settings;
  readonly #tallyman: Tallyman;
  readonly #host: Host;
  /** Whether answers call back; with a webhook, each would do so a second time. */
  readonly #isInline: boolean;

  constructor(settings: Settings, tallyman: Tallyman, host: Host) {
    this.#settings = settings;
    this.#tallyman = tallyman;
    this.#host = host;
    this.#isInline = settings.webhookSecret === undefined;
  }

  /** Calls back for the answer to a call; undefined if there is nothing to tell. Never rejects. */
  afterCall(result: MeterUsage): Promise<void> | undefined {
    const { organizationId, limit, current, crossed = [], resetDate } = result;
    // In an outage nobody knows the count.
    if (!this.#isInline || current === null) return undefined;
    const isExceeded = exceedsFirst(result, current);
    const isNewPeriod = current === result.amount && !result.deniedBy && this.#settings.onUsageReset !== undefined;
    const isCrossing = limit !== null && (crossed.length > 0 || isExceeded);
    if (!isCrossing && !isNewPeriod) return undefined;
    return (async () => {
      if (isNewPeriod) await this.#lazyReset(result);
      if (!isCrossing) return;
      const crossing = { organizationId, current, limit, resetDate };
      if (crossed.length > 0) await this.#warn(crossing, crossed);
      if (isExceeded) await this.#exceed(crossing);
    })();
  }

  /** Calls back for a reset that was made through the plugin. Never rejects. */
  async afterReset(organizationId: string, resetType: "manual" | "scheduled", reset?: { previousCount: number; resetDate: string | null }): Promise<void> {
    if (!this.#isInline || !this.#settings.onUsageReset) return;
    if (reset) return this.#reset({ organizationId, resetType, ...reset });
    const rows = await this.#periods(organizationId);
    const ended = rows.find((row) => !row.open);
    const resetDate = rows.find((row) => row.open)?.end ?? null;
    await this.#reset({ organizationId, resetType, previousCount: ended?.used ?? null, resetDate });
  }

  /** Calls back for an event. Never rejects. */
  async onEvent(event: TallymanEvent): Promise<void> {
    if (!("meter" in event.data) || event.data.meter !== this.#settings.meter) return;
    switch (event.type) {
      case "usage.warning":
        return this.#warn(event.data, [event.data.threshold]);
      case "usage.limit_exceeded":
        return this.#exceed(event.data);
      case "usage.reset":
        return this.#reset(event.data);
    }
  }

  /** A lazy period begins with its first call, which is the only one to find no other. */
  async #lazyReset({ organizationId, periodStart, resetDate }: MeterUsage): Promise<void> {
    const begin = Date.parse(periodStart);
    const ended = (await this.#periods(organizationId)).find((row) => Date.parse(row.start) < begin);
    // Other resets call back when they are made, and no period precedes the first one.
    if (!ended?.end || Date.parse(ended.end) > begin || (ended.resetType ?? "lazy") !== "lazy") return;
    await this.#reset({ organizationId, resetType: "lazy", previousCount: ended.used, resetDate });
  }

  async #warn(crossing: Crossing, percentages: number[]): Promise<void> {
    const context = await this.#limitContext(crossing);
    for (const percentage of percentages) await this.#call("onUsageWarning", (on) => on.onUsageWarning?.({ ...context, percentage }));
  }

  async #exceed(crossing: Crossing): Promise<void> {
    const context = await this.#limitContext(crossing);
    await this.#call("onLimitExceeded", (on) => on.onLimitExceeded?.(context));
  }

  async #reset({ organizationId, resetType, previousCount, resetDate }: Omit<ResetContext, "metricType" | "resetDate"> & { resetDate: string | null }): Promise<void> {
    const context: ResetContext = { organizationId, metricType: "api", resetType, previousCount, resetDate: dateOrNull(resetDate) };
    await this.#call("onUsageReset", (on) => on.onUsageReset?.(context));
  }

  async #call(name: CallbackName, call: (settings: Settings) => unknown): Promise<void> {
    try {
      await call(this.#settings);
    } catch (error) {
      this.#host.error(`${name} failed`, error);
    }
  }

  async #limitContext({ organizationId, current, limit, resetDate }: Crossing): Promise<LimitContext> {
    const organization = await this.#tallyman.organization(organizationId).catch(() => null);
    return { organizationId, metricType: "api", current, limit, planId: organization?.planId ?? null, resetDate: dateOrNull(resetDate) };
  }

  /** The latest periods, newest first; empty if Tallyman does not answer. */
  async #periods(organizationId: string): Promise<HistoryRow[]> {
    const latest = { granularity: "period", order: "desc", pageSize: 2 } as const;
    const query = { meter: [this.#settings.meter], ...latest };
    const page = await this.#tallyman.history(organizationId, query).catch(() => null);
    return page?.data ?? [];
  }
}

/** Whether the call is the period's first beyond the limit. */
function exceedsFirst({ enforcement, limit, amount, first }: MeterUsage, current: number): boolean {
  if (enforcement === "hard") return first === true;
  return limit !== null && current > limit && current - amount <= limit;
}

function dateOrNull(date: string | null): Date | null {
  return date === null ? null : new Date(date);
}
