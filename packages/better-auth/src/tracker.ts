// Counts calls, and decides which are refused: by the limit, or because Tallyman does not answer.

import { randomUUID } from "node:crypto";
import { type MeterUsage, type Tallyman, TallymanError } from "@tallyman/client";
import type { CircuitBreaker } from "./breaker.js";
import type { CountBuffer, Charge } from "./count-buffer.js";
import type { Callbacks } from "./callbacks.js";
import type { Host } from "./host.js";
import { isFinal, type Provisioner } from "./provisioner.js";
import type { AuthCall, Settings } from "./settings.js";

/** Organizations at their limit that the async mode remembers. */
const EXHAUSTED_MAX = 10_000;

/** Why a call is refused: the denial, or that there is no answer. */
export type Refusal = MeterUsage | "unavailable";

/** How far a charge is; one that is given up before it was sent must not be sent any more. */
interface Sending {
  state: "preparing" | "sent" | "given up";
}

interface Parts {
  settings: Settings;
  tallyman: Tallyman;
  provisioner: Provisioner;
  breaker: CircuitBreaker;
  buffer: CountBuffer;
  callbacks: Callbacks;
  host: Host;
  /** Milliseconds that a call waits for Tallyman, all requests together. */
  timeout: number;
}

export class Tracker {
  readonly #parts: Parts;
  /** In async mode, the organizations whose limit is used up; their calls are decided by Tallyman. */
  readonly #exhausted = new Set<string>();

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /**
   * Counts a call. Returns why it is refused, or undefined.
   *
   * @param isRefusable false for calls that are counted whatever the limit
   * @param run runs the callbacks that the call is due
   */
  async count(call: AuthCall, amount: number, isRefusable: boolean, run: (callbacks: Promise<void>) => Promise<void>): Promise<Refusal | undefined> {
    const { settings, breaker, buffer, host } = this.#parts;
    const { organizationId } = call;
    if (settings.mode === "async" && !(isRefusable && this.#exhausted.has(organizationId))) {
      buffer.add(organizationId, amount);
      return undefined;
    }
    const op = isRefusable ? "consume" : "track";
    const charge: Charge = { op, organizationId, meter: settings.meter, amount, idempotencyKey: randomUUID() };
    const sending: Sending = { state: "preparing" };
    let result: MeterUsage;
    try {
      if (!breaker.admits()) return this.#miss(call, charge, sending);
      result = await withDeadline(this.#send(charge, sending), this.#parts.timeout);
      breaker.succeeded();
    } catch (error) {
      if (isFinal(error)) {
        host.error("a call is not counted because Tallyman does not take it", error);
        breaker.succeeded();
        return this.#isRefused(call, charge) ? "unavailable" : undefined;
      }
      breaker.failed(error);
      return this.#miss(call, charge, sending);
    }
    const callbacks = this.#observe(result);
    if (callbacks) await run(callbacks);
    return result.deniedBy ? result : undefined;
  }

  /** Takes the answer to a count that waited in memory. */
  afterAnswer(result: MeterUsage): void {
    const callbacks = this.#observe(result);
    if (callbacks) this.#parts.host.runInBackground(callbacks);
  }

  /** Sends what waits in memory; for what must see it, which waits no longer than a call does. */
  async settle(): Promise<void> {
    const { buffer, timeout } = this.#parts;
    await withDeadline(buffer.flush(), timeout).catch(() => undefined);
  }

  /** Learns from an answer whether the limit is used up, and returns the callbacks that are due. */
  #observe(result: MeterUsage): Promise<void> | undefined {
    const { organizationId, enforcement, limit, current } = result;
    if (current === null) return undefined;
    this.#exhausted.delete(organizationId);
    if (this.#parts.settings.mode === "async" && enforcement === "hard" && limit !== null && current >= limit) {
      this.#exhausted.add(organizationId);
      if (this.#exhausted.size > EXHAUSTED_MAX) this.#exhausted.delete(this.#exhausted.values().next().value!);
    }
    return this.#parts.callbacks.afterCall(result);
  }

  async #send({ op, idempotencyKey, ...body }: Charge, sending: Sending): Promise<MeterUsage> {
    await this.#parts.provisioner.ensure(body.organizationId);
    if (sending.state === "given up") throw new Error("the call has been answered without Tallyman");
    sending.state = "sent";
    const { tallyman } = this.#parts;
    return op === "consume" ? tallyman.consume(body, { idempotencyKey }) : tallyman.track(body, { idempotencyKey });
  }

  /** Answers a call without Tallyman. */
  #miss(call: AuthCall, charge: Charge, sending: Sending): Refusal | undefined {
    const isSent = sending.state === "sent";
    sending.state = "given up";
    // What is refused is not to be counted.
    if (this.#isRefused(call, charge)) return "unavailable";
    if (isSent) this.#parts.buffer.repeat(charge);
    else this.#parts.buffer.add(charge.organizationId, charge.amount);
    return undefined;
  }

  /** Whether a call that cannot be counted now is refused. */
  #isRefused(call: AuthCall, { op }: Charge): boolean {
    const { settings, host } = this.#parts;
    const { whenUnavailable = "allow" } = settings;
    if (op === "track") return false;
    try {
      return (typeof whenUnavailable === "function" ? whenUnavailable(call) : whenUnavailable) === "refuse";
    } catch (error) {
      host.error("whenUnavailable failed, and the call is allowed", error);
      return false;
    }
  }
}

function withDeadline<T>(promise: Promise<T>, timeout: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const detail = `no answer within ${timeout} ms`;
    const timer = setTimeout(() => reject(new TallymanError("usage-tracking", { status: 0, code: "timeout", detail })), timeout);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
