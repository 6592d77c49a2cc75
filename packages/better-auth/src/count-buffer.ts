// What waits to be counted: calls of the async mode, and calls that were answered while Tallyman was away.
//
// What was never sent is merged by organization and minute, so that a long outage takes little memory. What was sent keeps its
// operation and its idempotency key, so that a repetition counts nothing twice.

import { randomUUID } from "node:crypto";
import { type BatchItem, type BatchResult, type MeterUsage, type Tallyman, TallymanError } from "@tallyman/client";
import type { CircuitBreaker } from "./breaker.js";
import type { Host } from "./host.js";
import { isFinal, type Provisioner } from "./provisioner.js";

/** Waiting items, merged or not; more are dropped and reported. */
const ITEMS_MAX = 10_000;
const BATCH_MAX = 1_000;
/** An organization's first call is preceded by a request of its own; so many are sent at a time. */
const PROVISIONED_AT_ONCE = 16;
/** Counts that have waited longer are sent with their time. */
const MINUTE = 60_000;

/** A charge with its idempotency key: sent before, or about to be. */
export type Charge = BatchItem & { amount: number; idempotencyKey: string };

/** Calls of one organization in one minute that were never sent. */
interface Merged {
  organizationId: string;
  amount: number;
  /** When the first was made. */
  since: number;
}

interface Parts {
  /** With a timeout that suits a batch. */
  tallyman: Tallyman;
  meter: string;
  interval: number;
  provisioner: Provisioner;
  breaker: CircuitBreaker;
  host: Host;
  /** Called with each answer. */
  onResult(result: MeterUsage): void;
}

export class CountBuffer {
  readonly #parts: Parts;
  readonly #merged = new Map<string, Merged>();
  #charges: Charge[] = [];
  #dropped = 0;
  #timer: NodeJS.Timeout | undefined;
  /** Of the flush that runs. */
  #flushing: Promise<void> | undefined;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Counts what was never sent. */
  add(organizationId: string, amount: number): void {
    const now = Date.now();
    const id = `${Math.floor(now / MINUTE)} ${organizationId}`;
    const merged = this.#merged.get(id);
    if (merged) merged.amount += amount;
    else if (this.#hasRoom(amount)) this.#merged.set(id, { organizationId, amount, since: now });
    this.#schedule();
  }

  /** Repeats what may have been counted, until there is an answer. */
  repeat(charge: Charge): void {
    if (this.#hasRoom(charge.amount)) this.#charges.push(charge);
    this.#schedule();
  }

  /** Sends everything that waits now; resolves early if Tallyman does not answer. */
  async flush(): Promise<void> {
    // A flush that runs may have taken its last batch already.
    await this.#flushing;
    this.#flushing ??= this.#send().finally(() => {
      this.#flushing = undefined;
    });
    return this.#flushing;
  }

  #hasRoom(amount: number): boolean {
    if (this.#merged.size + this.#charges.length < ITEMS_MAX) return true;
    if (this.#dropped === 0) this.#parts.host.error(`more than ${ITEMS_MAX} counts wait for Tallyman; further ones are dropped`);
    this.#dropped += amount;
    return false;
  }

  #schedule(isAway = false): void {
    if (this.#timer) return;
    this.#timer = setTimeout(this.#flushNow, this.#parts.interval).unref();
    // A process that ends by itself sends its counts first, unless Tallyman is away.
    if (!isAway) process.once("beforeExit", this.#flushNow);
  }

  #flushNow = (): void => {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    process.off("beforeExit", this.#flushNow);
    void this.flush();
  };

  async #send(): Promise<void> {
    const { breaker, host } = this.#parts;
    try {
      // What was sent before goes first and alone: as long as that fails, the rest can still be merged.
      while (this.#charges.length > 0 || this.#merged.size > 0) {
        if (!breaker.admits()) return this.#schedule(true);
        if (this.#charges.length === 0) this.#seal();
        await this.#sendBatch(this.#charges.slice(0, BATCH_MAX));
        breaker.succeeded();
      }
      if (this.#dropped > 0) host.error(`${this.#dropped} units were dropped while Tallyman was away`);
      this.#dropped = 0;
    } catch (error) {
      breaker.failed(error);
      this.#schedule(true);
    }
  }

  /** Gives what was never sent its operation and its key. */
  #seal(): void {
    for (const [id, { organizationId, amount, since }] of [...this.#merged].slice(0, BATCH_MAX)) {
      this.#merged.delete(id);
      const isLate = Date.now() - since > MINUTE;
      this.#charges.push({
        op: "track",
        organizationId,
        meter: this.#parts.meter,
        amount,
        idempotencyKey: randomUUID(),
        ...(isLate && { timestamp: new Date(since).toISOString() }),
      });
    }
  }

  async #sendBatch(batch: Charge[]): Promise<void> {
    const { tallyman, provisioner } = this.#parts;
    const organizations = [...new Set(batch.map((charge) => charge.organizationId))];
    for (let at = 0; at < organizations.length; at += PROVISIONED_AT_ONCE) {
      await Promise.all(organizations.slice(at, at + PROVISIONED_AT_ONCE).map((id) => provisioner.ensure(id)));
    }
    let results: BatchResult[];
    try {
      ({ results } = await tallyman.batch(batch));
    } catch (error) {
      if (!isFinal(error)) throw error;
      this.#parts.host.error(`Tallyman does not take ${batch.length} counts, which are dropped`, error);
      results = [];
    }
    const again = results.flatMap((result) => this.#repetition(batch[result.index]!, result));
    // Charges that were added meanwhile are behind the batch.
    this.#charges = [...again, ...this.#charges.slice(batch.length)];
    for (const result of results) {
      if (result.status === 200 || result.status === 429) this.#parts.onResult(result as MeterUsage);
    }
    for (const result of results) {
      // The repetition waits, as after a failure of the whole batch.
      if (result.status === 503 || result.status === 504) throw new TallymanError("POST /v1/batch", result);
    }
  }

  /** What remains to be sent after an answer. */
  #repetition(charge: Charge, result: BatchResult): Charge[] {
    switch (result.status) {
      case 200:
        return [];
      case 429:
        // The call was answered, so it counts, whatever the limit.
        return [{ ...charge, op: "track", idempotencyKey: `${charge.idempotencyKey}/answered` }];
      case 503:
      case 504:
        return [charge];
      default:
        if (result.code === "timestamp_out_of_range") {
          const { timestamp: _timestamp, ...withoutTime } = charge;
          return [withoutTime];
        }
        this.#parts.host.error(`Tallyman does not count ${charge.amount} units of "${charge.organizationId}": ${result.detail}`);
        return [];
    }
  }
}
