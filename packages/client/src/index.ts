export { createTallyman } from "./client.js";
export { type ClientErrorCode, type ErrorFields, TallymanError } from "./error.js";
export type * from "./operations.js";
export type { BatchOptions, Count, Tallyman, TallymanOptions } from "./tallyman.js";
export type * from "./types.js";
export { type ReceivedWebhook, verifyWebhook } from "./webhooks.js";
