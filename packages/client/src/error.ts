import type { components } from "./openapi.js";

/** The codes of the client itself; all others are those of the service's problems. */
export type ClientErrorCode =
  /** No connection, or it broke before the response was complete. */
  | "unreachable"
  /** No response within `timeout`. */
  | "timeout"
  /** The caller's `signal` was aborted. */
  | "aborted"
  /** The response is not Tallyman's: a proxy's page, or not JSON. */
  | "unexpected_response"
  /** No URL or no key was given. */
  | "not_configured"
  /** A webhook without a valid signature, or too old. */
  | "invalid_webhook";

/** What a {@link TallymanError} is made of. */
export interface ErrorFields {
  /** The HTTP status, or 0 where there was no response. */
  status: number;
  /** Stable, for programs: a {@link ClientErrorCode}, or the `code` of a problem, such as `not_found`. */
  code: ClientErrorCode | (string & {});
  /** What was wrong, for people. */
  detail: string;
  /** The invalid fields of a 400: JSON pointers and what is valid. */
  errors?: components["schemas"]["FieldError"][] | undefined;
  /** Seconds to wait before a retry. */
  retryAfter?: number | undefined;
  /** The `x-request-id` of the response, which the service's log has too. */
  requestId?: string | undefined;
}

/** Every failure of a call. `cause` has the error below it, such as that of `fetch`. */
export class TallymanError extends Error implements ErrorFields {
  override readonly name = "TallymanError";
  readonly status: number;
  readonly code: ErrorFields["code"];
  readonly detail: string;
  readonly errors: ErrorFields["errors"];
  readonly retryAfter: number | undefined;
  readonly requestId: string | undefined;

  /** @param context what failed, such as `POST /v1/consume`; the message begins with it */
  constructor(context: string, fields: ErrorFields, options?: ErrorOptions) {
    const status = fields.status ? `${fields.status} ` : "";
    super(`${context}: ${status}${fields.code}: ${fields.detail}`, options);
    this.status = fields.status;
    this.code = fields.code;
    this.detail = fields.detail;
    this.errors = fields.errors;
    this.retryAfter = fields.retryAfter;
    this.requestId = fields.requestId;
  }
}

/** Whether the same request may succeed in a moment. */
export function isTransient(error: unknown): error is TallymanError {
  return error instanceof TallymanError && (error.code === "unreachable" || [502, 503, 504].includes(error.status));
}
