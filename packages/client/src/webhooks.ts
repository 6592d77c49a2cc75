// Webhooks are signed as https://www.standardwebhooks.com says, here with WebCrypto alone.

import { TallymanError } from "./error.js";
import type { TallymanEvent } from "./types.js";

/** Seconds by which a webhook may be late, or its sender's clock ahead. */
const TOLERANCE = 5 * 60;

/** A request as Node's and other frameworks have it; the body must be what was received, byte by byte. */
export interface ReceivedWebhook {
  headers: Headers | Record<string, string | string[] | undefined>;
  body: string | Uint8Array;
}

/**
 * Returns the event of a webhook that Tallyman has signed with the secret, at most five minutes ago.
 *
 * The same event may arrive more than once, always under the same `id`.
 *
 * @throws {TallymanError} `invalid_webhook`: respond with 401 and do nothing else
 */
export async function verifyWebhook(request: Request | ReceivedWebhook, secret: string): Promise<TallymanEvent> {
  const header = (name: string) => headerOf(request.headers, name);
  const [id, sentAt, signatures] = [header("webhook-id"), header("webhook-timestamp"), header("webhook-signature")];
  if (!id || !sentAt || !signatures) throw invalid("it has no signature");
  const key = await hmacKey(secret);
  if (!/^\d+$/.test(sentAt) || Math.abs(Date.now() / 1000 - Number(sentAt)) > TOLERANCE) {
    throw invalid("it was not sent in the last five minutes");
  }
  const body = await bytesOf(request);
  const signed = concat(new TextEncoder().encode(`${id}.${sentAt}.`), body);
  // After a rotation of the secret there are two.
  for (const signature of signatures.split(" ")) {
    const mac = signature.startsWith("v1,") && decode(signature.slice(3));
    if (mac && (await crypto.subtle.verify("HMAC", key, mac, signed))) {
      return { id, ...JSON.parse(new TextDecoder().decode(body)) };
    }
  }
  throw invalid("its signature is not made with this secret");
}

function invalid(detail: string): TallymanError {
  return new TallymanError("webhook", { status: 0, code: "invalid_webhook", detail });
}

function headerOf(headers: ReceivedWebhook["headers"], name: string): string | undefined {
  if (typeof headers.get === "function") return headers.get(name) ?? undefined;
  // Node has them in lower case, others as they were sent.
  const value = Object.entries(headers).find(([key]) => key.toLowerCase() === name)?.[1];
  return Array.isArray(value) ? value[0] : value;
}

async function bytesOf(request: Request | ReceivedWebhook): Promise<Uint8Array> {
  if ("arrayBuffer" in request) return new Uint8Array(await request.arrayBuffer());
  return typeof request.body === "string" ? new TextEncoder().encode(request.body) : request.body;
}

async function hmacKey(secret: string): Promise<CryptoKey> {
  const bytes = secret.startsWith("whsec_") && decode(secret.slice("whsec_".length));
  if (!bytes || bytes.length === 0) {
    const detail = "the secret must be whsec_ and base64, as it was shown once";
    throw new TallymanError("webhook", { status: 0, code: "not_configured", detail });
  }
  return crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
}

function decode(base64: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  } catch {
    return undefined;
  }
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
