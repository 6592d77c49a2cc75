/** The errors of the endpoints and of refused calls, by code; `auth.$ERROR_CODES` and the client's `$ERROR_CODES` have them too. */
export const USAGE_TRACKING_ERROR_CODES = {
  API_LIMIT_EXCEEDED: error("API_LIMIT_EXCEEDED", "The organization has used up its API limit"),
  USAGE_UNAVAILABLE: error("USAGE_UNAVAILABLE", "Usage is not available at the moment; try again later"),
  NO_ORGANIZATION: error("NO_ORGANIZATION", "No organization: pass organizationId, or set an active organization"),
  ORGANIZATION_NOT_FOUND: error("ORGANIZATION_NOT_FOUND", "There is no such organization"),
  NOT_A_MEMBER: error("NOT_A_MEMBER", "You are not a member of this organization"),
  NOT_ALLOWED: error("NOT_ALLOWED", "This needs an administrator of the platform"),
  INVALID_API_KEY: error("INVALID_API_KEY", "The API key is missing or wrong"),
  INVALID_WEBHOOK: error("INVALID_WEBHOOK", "The webhook is not signed by Tallyman with this secret, or too old"),
} as const;

/** A code of {@link USAGE_TRACKING_ERROR_CODES}. */
export type UsageTrackingErrorCode = keyof typeof USAGE_TRACKING_ERROR_CODES;

function error<Code extends string>(code: Code, message: string): { readonly code: Code; message: string } {
  return { code, message };
}
