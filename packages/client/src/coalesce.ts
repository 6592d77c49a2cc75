// Tracks and consumes that are made while a request is in flight share the next one, as a batch.

import { isTransient } from "./error.js";
import { foreign, type HttpResponse, type HttpRequest, type Lifetime, outcome, retrying, send, type Settings } from "./http.js";

/** A batch below this size is processed by the service without waiting for large ones. */
const MAX_BATCH_BYTES = 16_000;

/** How long a request keeps the next one waiting, ms; one that hangs must not hold up the others. */
const MAX_HOLD = 100;

export interface Charge {
  op: "track" | "consume";
  body: object;
  key: string | undefined;
  life: Lifetime;
}

interface Call extends Charge {
  /** The charge as an item of a batch. */
  item: string;
  resolve(result: unknown): void;
  reject(error: unknown): void;
}

export class Coalescer {
  readonly #settings: Settings;
  readonly #maxInFlight: number;
  #waiting: Call[] = [];
  #inFlight = 0;

  /** @param maxInFlight requests at a time; with `Infinity` no call waits, and none is shared */
  constructor(settings: Settings, maxInFlight: number) {
    this.#settings = settings;
    this.#maxInFlight = maxInFlight;
  }

  /** Sends a charge, at once if it may, else with the next request. */
  send<T>(charge: Charge): Promise<T> {
    const { op, body, key: idempotencyKey } = charge;
    // Here, so that a body that is not JSON fails its own call only.
    const item = JSON.stringify({ ...body, op, idempotencyKey });
    return new Promise<T>((resolve, reject) => {
      this.#waiting.push({ ...charge, item, resolve: resolve as (result: unknown) => void, reject });
      this.#next();
    });
  }

  #next(): void {
    if (this.#inFlight >= this.#maxInFlight) return;
    // A call that ended while it waited is not sent.
    const waiting = this.#waiting.filter(isAwaited);
    let bytes = 0;
    const end = waiting.findIndex((call) => (bytes += call.item.length + 1) > MAX_BATCH_BYTES);
    const count = end < 0 ? waiting.length : Math.max(end, 1);
    this.#waiting = waiting.splice(count);
    if (waiting.length === 0) return;
    this.#inFlight++;
    let held = true;
    const release = () => {
      if (held) this.#inFlight--;
      held = false;
      this.#next();
    };
    const timer = setTimeout(release, MAX_HOLD);
    void this.#deliver(waiting).finally(() => {
      clearTimeout(timer);
      release();
    });
  }

  /** Settles each call with its own result; those that may be retried are, together. */
  async #deliver(calls: Call[]): Promise<void> {
    let open = calls;
    const controller = new AbortController();
    const onEnd = () => {
      if (!open.some(isAwaited)) controller.abort(new Error("nobody waits for it any more"));
    };
    for (const call of calls) call.life.onEnd = onEnd;
    const deadline = () => Math.min(...open.filter(isAwaited).map((call) => call.life.deadline));
    try {
      await retrying(async () => {
        open = open.filter(isAwaited);
        const responses = await this.#request(open, controller.signal);
        const failures = open.map((call, index) => settle(call, responses[index]!));
        open = open.filter((_, index) => failures[index]);
        if (open.length > 0) throw failures.find(Boolean);
      }, { retries: this.#settings.retries, signal: controller.signal, deadline });
    } catch (error) {
      for (const call of open) call.reject(error);
    }
  }

  /** The response of each call. */
  async #request(calls: Call[], signal: AbortSignal): Promise<HttpResponse[]> {
    const request = calls.length === 1 ? single(calls[0]!) : batch(calls);
    const response = await send(this.#settings, request, signal);
    const responses = calls.length === 1 ? [response] : responsesOf(response);
    const isVerdict = ({ status, body }: HttpResponse) => status >= 400 || typeof body?.allowed === "boolean";
    if (responses.length === calls.length && responses.every(isVerdict)) return responses;
    throw foreign(this.#settings, request.name, response.status, response.headers);
  }
}

function isAwaited({ life }: Call): boolean {
  return !life.ended;
}

function single({ op, body, key }: Charge): HttpRequest {
  const path = `/v1/${op}`;
  const headers = key === undefined ? {} : { "idempotency-key": key };
  return { name: `POST ${path}`, method: "POST", path, headers, body: JSON.stringify(body) };
}

function batch(calls: Call[]): HttpRequest {
  const body = `{"items":[${calls.map((call) => call.item).join(",")}]}`;
  return { name: "POST /v1/batch", method: "POST", path: "/v1/batch", body };
}

/** The results of a batch as if each had been a call. */
function responsesOf(response: HttpResponse): HttpResponse[] {
  const { results = [] } = outcome<{ results?: { status: number }[] }>("POST /v1/batch", response);
  return results.map((body) => ({ status: body.status, body, headers: response.headers }));
}

/** Returns a failure after which the call may be retried; it is settled otherwise. */
function settle(call: Call, response: HttpResponse): unknown {
  try {
    call.resolve(outcome(`POST /v1/${call.op}`, response));
  } catch (error) {
    if (isTransient(error)) return error;
    call.reject(error);
  }
  return undefined;
}
