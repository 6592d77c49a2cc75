// Gives organizations that Tallyman does not know the limits and the calendar of the options, before they are counted.

import { type Tallyman, TallymanError } from "@tallyman/client";
import type { Host } from "./host.js";
import type { Settings } from "./settings.js";

/** Organizations that are remembered as known; about 100 bytes each. */
const KNOWN_MAX = 10_000;

export class Provisioner {
  /** By organization: pending, or settled once Tallyman knows it. In order of insertion. */
  readonly #known = new Map<string, Promise<void>>();
  readonly #tallyman: Tallyman;
  readonly #defaults: Settings["defaults"];
  readonly #host: Host;

  constructor(tallyman: Tallyman, { defaults }: Settings, host: Host) {
    this.#tallyman = tallyman;
    this.#defaults = defaults;
    this.#host = host;
  }

  /**
   * Resolves once Tallyman knows the organization; at once if there is nothing to tell it. Concurrent callers share one request.
   *
   * @throws {TallymanError} if Tallyman does not answer; the organization must not be counted then, because it would start without the options
   */
  async ensure(organizationId: string): Promise<void> {
    if (Object.keys(this.#defaults).length === 0) return;
    const known = this.#known.get(organizationId);
    if (known) return known;
    const created = this.#create(organizationId);
    this.#known.set(organizationId, created);
    if (this.#known.size > KNOWN_MAX) this.#known.delete(this.#known.keys().next().value!);
    try {
      await created;
    } catch (error) {
      this.#known.delete(organizationId);
      throw error;
    }
  }

  async #create(organizationId: string): Promise<void> {
    try {
      await this.create(organizationId);
    } catch (error) {
      // A defect of one organization must not keep the counts of all others waiting.
      const isDefect = error instanceof TallymanError && error.status === 500;
      if (!isFinal(error) && !isDefect) throw error;
      this.#host.error(`Tallyman does not take the options of usageTracking for "${organizationId}", which starts with Tallyman's defaults`, error);
    }
  }

  /** Creates the organization unless it exists. */
  async create(organizationId: string): Promise<void> {
    try {
      await this.#tallyman.putOrganization(organizationId, this.#defaults, { ifNoneMatch: "*" });
    } catch (error) {
      if (!(error instanceof TallymanError && error.code === "precondition_failed")) throw error;
    }
  }
}

/** Whether the same request would fail again. */
export function isFinal(error: unknown): boolean {
  if (!(error instanceof TallymanError)) return false;
  const { status, code } = error;
  // Another key, or more time, may help against 401 and 408.
  return code === "invalid_field" || (status >= 400 && status < 500 && status !== 401 && status !== 408);
}
