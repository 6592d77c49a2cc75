import { Coalescer } from "./coalesce.js";
import { TallymanError } from "./error.js";
import { outcome, retrying, send, type Settings, within } from "./http.js";
import type { KeyedOperation, KeyedOptions } from "./operations.js";
import type { Tallyman, TallymanOptions } from "./tallyman.js";
import { verifyWebhook } from "./webhooks.js";

/** Requests at a time. Two take more CPU of both sides for each call, and are not faster below some hundred concurrent calls. */
const MAX_IN_FLIGHT = 1;

/** What repeating with the same key does not do again. */
const KEYED: Record<KeyedOperation, true> = {
  "POST /v1/track": true,
  "POST /v1/consume": true,
  "POST /v1/refund": true,
  "POST /v1/batch": true,
  "POST /v1/organizations/{id}/reset": true,
  "POST /v1/organizations/{id}/adjust": true,
  "POST /v1/reset-expired": true,
};

/** The parameters of any operation. */
interface AnyParameters extends KeyedOptions {
  path?: Record<string, string>;
  query?: object | undefined;
  body?: unknown;
  ifMatch?: number | "*" | undefined;
  ifNoneMatch?: "*" | undefined;
}

/**
 * Makes a client; one for the whole program shares the most.
 *
 * @throws {TallymanError} `not_configured` without a URL or a key
 */
export function createTallyman(options: TallymanOptions = {}): Tallyman {
  const settings = settingsOf(options);
  const coalescer = new Coalescer(settings, options.coalesce ?? true ? MAX_IN_FLIGHT : Infinity);

  const request = <T>(operation: string, parameters: AnyParameters = {}): Promise<T> => execute(settings, operation, parameters);
  const count = <T>(op: "track" | "consume", body: object, { idempotencyKey, signal }: KeyedOptions = {}): Promise<T> => {
    const name = `POST /v1/${op}`;
    return within(name, settings.timeout, signal, (life) => {
      return coalescer.send<T>({ op, body, key: keyFor(settings, name, idempotencyKey), life });
    });
  };
  return {
    track: (body: object, options?: KeyedOptions) => count<never>("track", body, options),
    consume: (body: object, options?: KeyedOptions) => count<never>("consume", body, options),
    check: (body: object, options?: object) => request<never>("POST /v1/check", { body, ...options }),
    refund: (body: object, options?: object) => request<never>("POST /v1/refund", { body, ...options }),
    batch: (items, { results, ...options } = {}) => request("POST /v1/batch", { body: { items }, query: { results }, ...options }),

    usage: (id, options) => request("GET /v1/organizations/{id}/usage", { path: { id }, ...options }),
    history: (id, query, options) => request("GET /v1/organizations/{id}/history", { path: { id }, query, ...options }),
    limits: (id, options) => request("GET /v1/organizations/{id}/limits", { path: { id }, ...options }),
    feature: (id, feature, options) => request("GET /v1/organizations/{id}/features/{feature}", { path: { id, feature }, ...options }),
    events: (query, options) => request("GET /v1/events", { query, ...options }),

    organizations: (query, options) => request("GET /v1/organizations", { query, ...options }),
    organization: (id, options) => request("GET /v1/organizations/{id}", { path: { id }, ...options }),
    putOrganization: (id, body, options) => request("PUT /v1/organizations/{id}", { path: { id }, body, ...options }),
    patchOrganization: (id, body, options) => request("PATCH /v1/organizations/{id}", { path: { id }, body, ...options }),
    deleteOrganization: (id, options) => request("DELETE /v1/organizations/{id}", { path: { id }, ...options }),
    patchLimits: (id, body, options) => request("PATCH /v1/organizations/{id}/limits", { path: { id }, body, ...options }),
    reset: (id, body = {}, options) => request("POST /v1/organizations/{id}/reset", { path: { id }, body, ...options }),
    adjust: (id, body, options) => request("POST /v1/organizations/{id}/adjust", { path: { id }, body, ...options }),
    resetExpired: (options) => request("POST /v1/reset-expired", options),

    request,
    list: (operation: string, parameters?: AnyParameters) => list<never>(request, operation, parameters),
    verifyWebhook,
  };
}

function settingsOf(options: TallymanOptions): Settings {
  // `process` is there in Node and what is compatible with it.
  const env = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env ?? {};
  const url = options.url ?? env.TALLYMAN_URL;
  const key = options.key ?? env.TALLYMAN_API_KEY;
  if (!url) throw notConfigured("the URL of Tallyman is missing: set TALLYMAN_URL, or give `url`");
  if (!/^https?:\/\/[^@]+$/.test(url)) throw notConfigured("the URL of Tallyman must be http:// or https://, without a user or a password");
  if (!key) throw notConfigured("the key is missing: set TALLYMAN_API_KEY, or give `key`");
  return {
    url: url.replace(/\/+$/, ""),
    key,
    // The global one is looked up at each call, so that what replaces it later is used.
    fetch: options.fetch ?? ((input, init) => fetch(input, init)),
    // What a timer can wait.
    timeout: Math.min(options.timeout ?? 5000, 2 ** 31 - 1),
    retries: options.retries ?? 2,
  };
}

function notConfigured(detail: string): TallymanError {
  return new TallymanError("createTallyman", { status: 0, code: "not_configured", detail });
}

function invalid(operation: string, detail: string): TallymanError {
  return new TallymanError(operation, { status: 0, code: "invalid_field", detail });
}

/** The caller's key, or a new one, because what is retried needs one. */
function keyFor(settings: Settings, operation: string, given: string | undefined): string | undefined {
  if (given === undefined) return settings.retries > 0 ? crypto.randomUUID() : undefined;
  if (/^[ -~]{1,255}$/.test(given)) return given;
  throw invalid(operation, `idempotencyKey must be 1 to 255 printable ASCII characters; got ${JSON.stringify(given)}`);
}

function execute<T>(settings: Settings, operation: string, parameters: AnyParameters): Promise<T> {
  const [method = "", template = ""] = operation.split(" ");
  const { body, idempotencyKey, ifMatch, ifNoneMatch, signal } = parameters;
  return within(operation, settings.timeout, signal, async (life) => {
    const key = operation in KEYED ? keyFor(settings, operation, idempotencyKey) : undefined;
    const headers: Record<string, string> = {};
    if (key !== undefined) headers["idempotency-key"] = key;
    if (ifMatch !== undefined) headers["if-match"] = ifMatch === "*" ? "*" : `"${ifMatch}"`;
    if (ifNoneMatch !== undefined) headers["if-none-match"] = ifNoneMatch;
    const path = pathOf(operation, template, parameters);
    const request = { name: operation, method, path, headers, body: body === undefined ? undefined : JSON.stringify(body) };

    const repeatable = key !== undefined || method === "GET" || operation === "POST /v1/check";
    const controller = new AbortController();
    life.onEnd = (error) => controller.abort(error);
    const attempt = async () => outcome<T>(operation, await send(settings, request, controller.signal));
    return retrying(attempt, { retries: repeatable ? settings.retries : 0, signal: controller.signal, deadline: () => life.deadline });
  });
}

function pathOf(operation: string, template: string, { path = {}, query = {} }: AnyParameters): string {
  const filled = template.replace(/\{(\w+)\}/g, (_, name: string) => {
    const value = path[name];
    // A URL without such a segment would be that of another operation.
    if (!value || /^\.\.?$/.test(value)) {
      throw invalid(operation, `${name} must be an id; got ${JSON.stringify(value)}`);
    }
    return encodeURIComponent(value);
  });
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== undefined) search.append(name, String(one));
  }
  return `${filled}?${search}`.replace(/\?$/, "");
}

async function* list<T>(
  request: <T>(operation: string, parameters: AnyParameters) => Promise<T>,
  operation: string,
  parameters: AnyParameters = {},
): AsyncGenerator<T, void> {
  let cursor: string | null | undefined;
  do {
    const query = { ...parameters.query, ...(cursor ? { cursor } : {}) };
    const page = await request<{ data: T[]; nextCursor?: string | null }>(operation, { ...parameters, query });
    yield* page.data;
    cursor = page.nextCursor;
  } while (cursor);
}
