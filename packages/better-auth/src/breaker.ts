// Whether Tallyman is asked at all: after it has failed, calls do not wait for it.

import { TallymanError } from "@tallyman/client";

/** Failures in a row, other than a timeout, that open the breaker; a timeout opens it at once. */
const FAILURES_MAX = 3;
/** Milliseconds that an open breaker waits before it lets a probe through. */
const COOLDOWN = 1000;

export class CircuitBreaker {
  #failures = 0;
  #openUntil = 0;
  /** Called with the error that opened it. */
  readonly #onOpen: (error: unknown) => void;
  /** Called when a probe has succeeded. */
  readonly #onClose: () => void;

  constructor(onOpen: (error: unknown) => void, onClose: () => void) {
    this.#onOpen = onOpen;
    this.#onClose = onClose;
  }

  get #isOpen(): boolean {
    return this.#openUntil > 0;
  }

  /** Whether a request may be sent. Of an open breaker, true is for one probe: others wait another cooldown for its outcome. */
  admits(): boolean {
    if (!this.#isOpen) return true;
    const now = performance.now();
    if (now < this.#openUntil) return false;
    this.#openUntil = now + COOLDOWN;
    return true;
  }

  succeeded(): void {
    this.#failures = 0;
    if (!this.#isOpen) return;
    this.#openUntil = 0;
    this.#onClose();
  }

  failed(error: unknown): void {
    this.#failures++;
    const isTimeout = error instanceof TallymanError && error.code === "timeout";
    if (!this.#isOpen && !isTimeout && this.#failures < FAILURES_MAX) return;
    const wasOpen = this.#isOpen;
    this.#openUntil = performance.now() + COOLDOWN;
    if (!wasOpen) this.#onOpen(error);
  }
}
