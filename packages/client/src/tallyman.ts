import type {
  CallOptions, ConditionalOptions, KeyedOptions, ListOperation, Operation, RequestBody, RequestParameters, RequestQuery, ResponseBody, Row,
} from "./operations.js";
import type {
  BatchItem, BatchSummary, ConsumeBody, MetersUsage, MeterUsage, OneMeter, RefundBody, SeveralMeters, TallymanEvent, TrackBody,
} from "./types.js";
import type { verifyWebhook } from "./webhooks.js";

/** All optional: with `TALLYMAN_URL` and `TALLYMAN_API_KEY` in the environment there is nothing to give. */
export interface TallymanOptions {
  /** Where the service is, such as `http://127.0.0.1:7400`; default `TALLYMAN_URL`. */
  url?: string | undefined;
  /** An API key, or what returns a key or a JWT, asked for each request; default `TALLYMAN_API_KEY`. */
  key?: string | (() => string | Promise<string>) | undefined;
  /** Instead of the global one. */
  fetch?: typeof fetch | undefined;
  /** For a whole call, waiting and retries included, ms; default 5000. */
  timeout?: number | undefined;
  /** Attempts after the first; default 2. With 0, calls have an idempotency key only if you give one. */
  retries?: number | undefined;
  /** Whether tracks and consumes that are made while one is in flight share the next request; default true. */
  coalesce?: boolean | undefined;
}

/** A call for one meter, or for several. */
export interface Count<B, Options> {
  (body: OneMeter<B>, options?: Options): Promise<MeterUsage>;
  (body: SeveralMeters<B>, options?: Options): Promise<MetersUsage>;
  (body: B, options?: Options): Promise<MeterUsage | MetersUsage>;
}

export interface BatchOptions extends KeyedOptions {
  /** `denied` omits the results of what was counted, `none` omits all. */
  results?: "denied" | "none" | undefined;
}

type Returns<O extends Operation> = Promise<ResponseBody<O>>;
type Arguments<O extends Operation> = object extends RequestParameters<O> ? [RequestParameters<O>?] : [RequestParameters<O>];
type Org = "/v1/organizations/{id}";

/**
 * The client of a Tallyman. Every method throws {@link TallymanError} for what is neither a success nor a denial by a limit.
 */
export interface Tallyman {
  /** Counts unconditionally; `allowed` is false if a hard limit is exceeded afterwards. */
  track: Count<TrackBody, KeyedOptions>;
  /** Counts if everything fits, or if the limit is soft; else `allowed` is false and nothing is counted. */
  consume: Count<ConsumeBody, KeyedOptions>;
  /** Says in `allowed` whether `consume` would count now; counts nothing. */
  check: Count<ConsumeBody, CallOptions>;
  /** Gives units back, at most what was counted; `applied` says how many. */
  refund: Count<RefundBody, KeyedOptions>;
  /** Up to 10,000 tracks and consumes, each of which succeeds or fails by itself. */
  batch(items: BatchItem[], options?: BatchOptions): Promise<BatchSummary>;

  /** The running period of each meter. */
  usage(id: string, options?: CallOptions): Returns<`GET ${Org}/usage`>;
  /** Hours, days or periods. */
  history(id: string, query?: RequestQuery<`GET ${Org}/history`>, options?: CallOptions): Returns<`GET ${Org}/history`>;
  /** The effective limits, and where each comes from. */
  limits(id: string, options?: CallOptions): Returns<`GET ${Org}/limits`>;
  /** One feature; an unknown one is not enabled. */
  feature(id: string, feature: string, options?: CallOptions): Returns<`GET ${Org}/features/{feature}`>;
  /** What happened, newest first. */
  events(query?: RequestQuery<"GET /v1/events">, options?: CallOptions): Promise<{ data: TallymanEvent[]; nextCursor?: string | null }>;

  /** The organizations as last stored, with their usage. */
  organizations(query?: RequestQuery<"GET /v1/organizations">, options?: CallOptions): Returns<"GET /v1/organizations">;
  /** The settings and limits. */
  organization(id: string, options?: CallOptions): Returns<`GET ${Org}`>;
  /** Creates an organization, or replaces its settings; with `ifNoneMatch: "*"` only creates, else 412. */
  putOrganization(id: string, settings: RequestBody<`PUT ${Org}`>, options?: ConditionalOptions): Returns<`PUT ${Org}`>;
  /** Changes single settings; null restores a default. */
  patchOrganization(id: string, changes: RequestBody<`PATCH ${Org}`>, options?: ConditionalOptions): Returns<`PATCH ${Org}`>;
  /** Erases usage, history and settings. */
  deleteOrganization(id: string, options?: ConditionalOptions): Returns<`DELETE ${Org}`>;
  /** Changes the given limits; null inherits that of the plan again. */
  patchLimits(id: string, changes: RequestBody<`PATCH ${Org}/limits`>, options?: ConditionalOptions): Returns<`PATCH ${Org}/limits`>;
  /** Ends the running period of the given meters, or of all. */
  reset(id: string, body?: RequestBody<`POST ${Org}/reset`>, options?: KeyedOptions): Returns<`POST ${Org}/reset`>;
  /** Corrects the running count of a meter. */
  adjust(id: string, body: RequestBody<`POST ${Org}/adjust`>, options?: KeyedOptions): Returns<`POST ${Org}/adjust`>;
  /** Ends the periods whose time has come, where the service does not do it by itself. */
  resetExpired(options?: KeyedOptions): Returns<"POST /v1/reset-expired">;

  /** Any operation of the HTTP API, such as `request("PUT /v1/plans/{id}", { path: { id: "pro" }, body: { … } })`. */
  request<O extends Operation>(operation: O, ...parameters: Arguments<O>): Returns<O>;
  /** The rows of all pages of a list, such as `for await (const entry of tallyman.list("GET /v1/audit"))`. */
  list<O extends ListOperation>(operation: O, ...parameters: Arguments<O>): AsyncGenerator<Row<O>, void>;

  verifyWebhook: typeof verifyWebhook;
}
