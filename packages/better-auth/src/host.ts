// What the parts use of Better Auth's context, which exists once the plugin is initialized.

import type { AuthContext } from "better-auth";

/** Milliseconds in which the same message is logged once. */
const REPEATED_AFTER = 60_000;
const MESSAGES_MAX = 1_000;

export class Host {
  /** Set by the plugin's `init`. */
  context: Pick<AuthContext, "logger" | "runInBackground"> | undefined;
  /** When a message was last logged. */
  readonly #logged = new Map<string, number>();

  /** Logs an error, the same message at most once a minute. */
  error(message: string, error?: unknown): void {
    const now = performance.now();
    if (now - (this.#logged.get(message) ?? -Infinity) < REPEATED_AFTER) return;
    if (this.#logged.size >= MESSAGES_MAX) this.#logged.clear();
    this.#logged.set(message, now);
    const reason = error === undefined ? "" : `: ${error instanceof Error ? error.message : String(error)}`;
    this.context?.logger.error(`[usage-tracking] ${message}${reason}`);
  }

  warn(message: string): void {
    this.context?.logger.warn(`[usage-tracking] ${message}`);
  }

  /** Keeps what outlives a request alive where the platform needs to know of it. */
  runInBackground(promise: Promise<void>): void {
    this.context?.runInBackground(promise);
  }
}
