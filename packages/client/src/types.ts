// The shapes that calls take and return.

import type { components } from "./openapi.js";
import type { RequestBody, ResponseBody } from "./operations.js";

type Schemas = components["schemas"];

/** What a result has besides the meters. */
export interface Verdict {
  /** The meters that denied the call, which may be among those in `require`; absent where it was granted. */
  deniedBy?: string[];
  /** True for the first call that one of these meters denies in its period; of concurrent ones, exactly one has it. */
  first?: boolean;
  /** The first instant at which the same call would be granted; absent where waiting does not help. */
  retryAt?: string;
  /** The same in seconds from now, rounded up. */
  retryAfter?: number;
  /** True if the counters were unreachable: nothing was enforced, and counts are null. */
  degraded?: boolean;
  /** True if such a call is counted once the counters are back. */
  queued?: boolean;
  /** True if the call repeated an idempotency key: this is the first result, and nothing was counted. */
  replayed?: true;
}

/** One meter after a call. */
export type MeterState = Schemas["MeterResult"];

/** The result of a call for one meter. `allowed` is false if it was denied. */
export type MeterUsage = MeterState & Verdict;

/** The result of a call with `meters`. `allowed` is false if it was denied, and then none was charged. */
export interface MetersUsage extends Verdict {
  allowed: boolean;
  organizationId: string;
  /** By name, charged or required; counts are null where `degraded`. */
  meters: Record<string, MeterState>;
}

/** A body that charges one meter, `api` unless named. */
export type OneMeter<B> = Exclude<B, { meters: unknown }>;
/** A body that charges several meters, all or none. */
export type SeveralMeters<B> = Extract<B, { meters: unknown }>;

export type TrackBody = Schemas["TrackBody"];
export type ConsumeBody = Schemas["ConsumeBody"];
export type RefundBody = Schemas["RefundBody"];

/** An item of a batch. */
export type BatchItem = RequestBody<"POST /v1/batch">["items"][number];

/** The result of an item of a batch; `status` says which of the shapes it has. */
export type BatchResult = { index: number; replayed?: true } & (
  | ({ status: 200 } & Schemas["UsageResult"])
  | ({ status: 429 } & Schemas["Problem"] & Schemas["UsageResult"])
  | (Schemas["Problem"] & { status: 400 | 403 | 404 | 409 | 422 | 500 | 503 | 504 })
);

/** The results of a batch. */
export type BatchSummary = Omit<ResponseBody<"POST /v1/batch">, "results"> & {
  /** In the order of the items, as far as they were asked for. */
  results: BatchResult[];
};

export type Usage = Schemas["Usage"];
export type Organization = Schemas["Organization"];
export type Limits = Schemas["Limits"];
export type HistoryRow = Schemas["HistoryRow"];

interface Crossing {
  organizationId: string;
  meter: string;
  /** The percentage that was reached. */
  threshold: number;
  /** The count at the crossing. */
  current: number;
  limit: number;
  periodStart: string;
  resetDate: string | null;
}

/** The `data` of events by type. */
export interface EventData extends Record<Schemas["EventType"], object> {
  "usage.warning": Crossing;
  "usage.limit_exceeded": Crossing;
  "usage.reset": {
    organizationId: string;
    meter: string;
    /** What ended the period: the first call after it, the calendar, or a reset. */
    resetType: Schemas["ResetMode"];
    /** The count of the period that has ended. */
    previousCount: number;
    /** Of the new period. */
    periodStart: string;
    resetDate: string | null;
  };
  "organization.deleted": { organizationId: string };
  "limits.updated": { organizationId: string; limits: Organization["limits"] };
  "webhook.test": { webhookId: string };
}

/** An event; `type` says what `data` has. */
export type TallymanEvent = {
  [T in keyof EventData]: { id: string; type: T; timestamp: string; data: EventData[T] };
}[keyof EventData];
