// Compiled by types.test.js, never run: what must compile, and what must not.

import { createTallyman, type Tallyman, TallymanError, type TallymanOptions, verifyWebhook } from "@tallyman/client";

const tallyman: Tallyman = createTallyman({ url: "http://127.0.0.1:7400", key: async () => "tm_key", timeout: undefined });

export async function counting(body: { organizationId: string }) {
  const one = await tallyman.consume({ organizationId: "org", amount: 2, require: { tokens: 1 } }, { idempotencyKey: "order-42" });
  const counted: number | null = one.current;
  const limit: number | null = one.limit;
  const first: boolean = one.first ?? false;
  const several = await tallyman.track({ organizationId: "org", meters: { api: 1, tokens: 1200 }, timestamp: "2026-11-30T00:00:00Z" });
  const tokens: number | null | undefined = several.meters["tokens"]?.current;
  (await tallyman.refund(body)).applied satisfies number | null | undefined;
  (await tallyman.check({ organizationId: "org" }, { signal: AbortSignal.timeout(100) })).retryAfter satisfies number | undefined;

  // @ts-expect-error: the result of one meter has no meters
  one.meters;
  // @ts-expect-error: the result of several meters has no count of its own
  several.current;
  // @ts-expect-error: an unlimited meter has no limit
  one.limit + 1;
  // @ts-expect-error: without an organization
  await tallyman.consume({ amount: 1 });
  // @ts-expect-error: a misspelt field
  await tallyman.consume({ organizationId: "org", amout: 1 });
  // @ts-expect-error: require is not for track
  await tallyman.track({ organizationId: "org", require: { api: 1 } });
  // @ts-expect-error: a check changes nothing, so it takes no idempotency key
  await tallyman.check({ organizationId: "org" }, { idempotencyKey: "key" });
  // @ts-expect-error: the key is not given by itself
  await tallyman.consume({ organizationId: "org" }, "order-42");
  return { counted, limit, first, tokens };
}

export async function batches() {
  const { results } = await tallyman.batch([{ op: "track", organizationId: "org", idempotencyKey: "k" }], { results: "denied" });
  for (const result of results) {
    if (result.status === 200) result.allowed satisfies boolean;
    else if (result.status === 429) result.deniedBy satisfies string[] | undefined;
    else result.detail satisfies string;
    // @ts-expect-error: a failed item has no usage
    result.allowed;
  }
  // @ts-expect-error: a batch has tracks and consumes only
  await tallyman.batch([{ op: "refund", organizationId: "org" }]);
}

export async function administration() {
  await tallyman.putOrganization("org", { planId: "pro", resetMode: "scheduled" }, { ifNoneMatch: "*" });
  await tallyman.patchOrganization("org", { features: { sso: true, seats: null } }, { ifMatch: 3 });
  await tallyman.patchLimits("org", { api: { limit: null, temporary: null }, tokens: null });
  (await tallyman.history("org", { granularity: "period" })).data[0]?.used satisfies number | undefined;
  // @ts-expect-error: no such mode
  await tallyman.putOrganization("org", { resetMode: "never" });
  // @ts-expect-error: an adjustment needs a reason
  await tallyman.adjust("org", { amount: -1 });
  // @ts-expect-error: no such granularity
  await tallyman.history("org", { granularity: "minute" });
  // @ts-expect-error: a reset takes no condition
  await tallyman.reset("org", {}, { ifMatch: 3 });
}

export async function requests() {
  const plan = await tallyman.request("PUT /v1/plans/{id}", { path: { id: "pro" }, body: { features: { sso: true } }, ifMatch: "*" });
  plan.version satisfies number;
  (await tallyman.request("DELETE /v1/plans/{id}", { path: { id: "pro" } })) satisfies undefined;
  (await tallyman.request("GET /v1/plans")).data[0]?.id satisfies string | undefined;
  for await (const entry of tallyman.list("GET /v1/audit", { query: { actor: "system" } })) entry.action satisfies string;
  // @ts-expect-error: no such operation
  await tallyman.request("GET /v1/plan");
  // @ts-expect-error: which plan?
  await tallyman.request("GET /v1/plans/{id}");
  // @ts-expect-error: without a body
  await tallyman.request("POST /v1/webhooks");
  // @ts-expect-error: a plan is no list
  tallyman.list("GET /v1/plans/{id}", { path: { id: "pro" } });
}

export async function webhooks(request: Request) {
  const event = await verifyWebhook(request, "whsec_");
  // @ts-expect-error: not every event has a meter
  event.data.meter;
  switch (event.type) {
    case "usage.warning":
    case "usage.limit_exceeded":
      return event.data.threshold satisfies number;
    case "usage.reset":
      return event.data.previousCount satisfies number;
    case "limits.updated":
      return event.data.limits["api"]?.limit satisfies number | null | undefined;
    case "organization.deleted":
      return event.data.organizationId satisfies string;
    case "webhook.test":
      return event.data.webhookId satisfies string;
    default:
      return event satisfies never;
  }
}

export function errors(error: unknown) {
  if (!(error instanceof TallymanError)) return undefined;
  if (error.code === "unreachable" || error.code === "not_found") return error.retryAfter satisfies number | undefined;
  // @ts-expect-error: errors are not changed
  error.status = 200;
  return error.errors?.[0]?.pointer satisfies string | undefined;
}

// A fake of a test needs no cast.
export const fake: Pick<Tallyman, "usage" | "request"> = { usage: tallyman.usage, request: tallyman.request };
export const options: TallymanOptions = { fetch, retries: 0, coalesce: false };
