// One request and its response, the time that a call has, and when it is retried.

import { isTransient, TallymanError } from "./error.js";

export interface Settings {
  url: string;
  key: string | (() => string | Promise<string>);
  fetch: typeof fetch;
  /** For a whole call, retries included, ms. */
  timeout: number;
  retries: number;
}

export interface HttpRequest {
  /** For messages, such as `POST /v1/consume`. */
  name: string;
  method: string;
  /** Path and query. */
  path: string;
  headers?: Record<string, string>;
  /** JSON. */
  body?: string | undefined;
}

/** A decoded response of Tallyman: a success, a problem, or a result of a batch. */
export interface HttpResponse {
  status: number;
  // The caller knows the shape by the operation.
  body: any;
  headers: Headers;
}

/** Sends a request once. Throws if there is no response, or if it is not Tallyman's. */
export async function send(settings: Settings, request: HttpRequest, signal: AbortSignal): Promise<HttpResponse> {
  const { name, method, path, body } = request;
  const headers: Record<string, string> = { ...request.headers, authorization: `Bearer ${await keyOf(settings)}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    const response = await settings.fetch(settings.url + path, { method, headers, signal, ...(body === undefined ? {} : { body }) });
    return decode(settings, name, response, await response.text());
  } catch (cause) {
    if (signal.aborted) throw signal.reason;
    if (cause instanceof TallymanError) throw cause;
    const detail = `no response from ${settings.url}; is a Tallyman running there?`;
    throw new TallymanError(name, { status: 0, code: "unreachable", detail }, { cause });
  }
}

/** The key, which no error may show; that of `fetch` would, if the header cannot be sent. */
async function keyOf(settings: Settings): Promise<string> {
  const key = (typeof settings.key === "string" ? settings.key : await settings.key()).trim();
  if (/^[!-~]+$/.test(key)) return key;
  throw new TallymanError("key", { status: 0, code: "not_configured", detail: "the key is empty or has characters that no key has" });
}

function decode(settings: Settings, name: string, { ok, status, headers }: Response, text: string): HttpResponse {
  if (ok && !text) return { status, body: undefined, headers };
  try {
    const body = JSON.parse(text);
    if (ok || typeof body?.code === "string") return { status, body, headers };
  } catch {
    // Reported below, as what is JSON but no problem.
  }
  throw foreign(settings, name, status, headers);
}

/** For a response that no Tallyman gives. */
export function foreign({ url }: Settings, name: string, status: number, headers: Headers): TallymanError {
  const detail = `the response is not from a Tallyman (${headers.get("content-type") ?? "no content type"}); check the URL ${url}`;
  return new TallymanError(name, { status, code: "unexpected_response", detail, retryAfter: retryAfter(headers) });
}

/** What the call returns: the body, also of a denial. Throws what the problem says. */
export function outcome<T>(name: string, { status, body, headers }: HttpResponse): T {
  if (status < 300 || body.code === "limit_exceeded") return result(body, headers) as T;
  const { code, detail, errors } = body;
  throw new TallymanError(errors?.[0] ? `${name} ${errors[0].pointer}` : name, {
    status,
    code,
    detail,
    errors,
    retryAfter: retryAfter(headers),
    requestId: headers.get("x-request-id") ?? undefined,
  });
}

/** A body with what headers say of it, and without what makes a problem of a denial. */
function result(body: any, headers: Headers): unknown {
  if (typeof body?.allowed !== "boolean") return body;
  const { type: _type, title: _title, status: _status, detail: _detail, code: _code, index: _index, ...usage } = body;
  if (headers.get("idempotent-replayed") === "true") usage.replayed = true;
  if (usage.retryAt) {
    // By the service's clock; browsers may hide the header of another origin.
    const now = Date.parse(headers.get("date") ?? "") || Date.now();
    usage.retryAfter = Math.max(0, Math.ceil((Date.parse(usage.retryAt) - now) / 1000));
  }
  return usage;
}

function retryAfter(headers: Headers): number | undefined {
  const seconds = Number(headers.get("retry-after") ?? NaN);
  return Number.isFinite(seconds) ? seconds : undefined;
}

/** The time of a call. An `AbortSignal` would do as well, and take as much CPU as the rest of a shared call. */
export interface Lifetime {
  /** As of `performance.now()`. */
  deadline: number;
  /** Why the call has ended without a response. */
  ended?: TallymanError;
  /** Called when it ends so. */
  onEnd?: (error: TallymanError) => void;
}

/** Runs a call that ends after `timeout` ms, or with the caller's signal, whatever it does itself. */
export function within<T>(name: string, timeout: number, signal: AbortSignal | undefined, run: (life: Lifetime) => Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const life: Lifetime = { deadline: performance.now() + timeout };
    const end = (code: "aborted" | "timeout", detail: string, options?: ErrorOptions) => {
      done();
      life.ended = new TallymanError(name, { status: 0, code, detail }, options);
      reject(life.ended);
      life.onEnd?.(life.ended);
    };
    const abort = () => end("aborted", "the caller ended it", { cause: signal?.reason });
    const timer = setTimeout(() => end("timeout", `no response within ${timeout} ms`), timeout);
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
    };
    if (signal?.aborted) return abort();
    signal?.addEventListener("abort", abort);
    (async () => run(life))().then(resolve, reject).finally(done);
  });
}

/** Tries again after transient failures, as long as the wait ends before the deadline. */
export async function retrying<T>(
  attempt: () => Promise<T>,
  { retries, signal, deadline }: { retries: number; signal: AbortSignal; deadline: () => number },
): Promise<T> {
  for (let attempts = 1; ; attempts++) {
    try {
      return await attempt();
    } catch (error) {
      if (!isTransient(error) || attempts > retries) throw error;
      // Jitter, so that the clients of an outage do not come back all at once.
      const wait = Math.max((error.retryAfter ?? 0) * 1000, 50 * 2 ** (attempts - 1)) * (1 + Math.random() / 2);
      if (performance.now() + wait >= deadline()) throw error;
      await sleep(wait, signal);
    }
  }
}

function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    }, ms);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
  });
}
