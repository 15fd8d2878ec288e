// From the headers and the raw body of a signed webhook to the delivery that the inbox keeps.

import { shopDomain } from "./shops.ts";
import type { Bytes } from "./signature.ts";
import { instant } from "./times.ts";

/** Of products and stock, then about the shop itself. */
export const TOPICS = [
  ...["products/create", "products/update", "products/delete"],
  ...["inventory_levels/update", "inventory_levels/connect", "inventory_levels/disconnect"],
  ...["customers/data_request", "customers/redact", "shop/redact", "app/uninstalled"],
];

// Shopify itself may deliver a day late, so a tight window would lose real events.
const OLDEST = 48 * 3_600_000;
const NEWEST = 10 * 60_000;

export class DeliveryError extends Error {}

/** The row for esl_inbox_add. Throws DeliveryError where the headers do not say what it is.
 *
 * topic: the address's, null for the one that takes all. Without a state the buffer judges the body, which is read
 * nowhere here: JavaScript would round its ids. Headers are not signed: one that cannot be right makes the delivery
 * unusable, and a good copy takes its place.
 */
export async function delivery(topic: string | null, headers: Headers, raw: Bytes, now: number) {
  const named = headers.get("x-shopify-topic") ?? "";
  if (topic !== null && named !== topic) {
    throw new DeliveryError(`X-Shopify-Topic must be given once and be ${topic} on this address.`);
  }
  if (!TOPICS.includes(named)) {
    throw new DeliveryError("X-Shopify-Topic must be given once and be a topic that is taken here.");
  }
  const shop = claimedShop(headers);
  if (shop === null) {
    throw new DeliveryError(
      "X-Shopify-Shop-Domain must be given once and be the shop's myshopify.com domain.",
    );
  }
  const digest = await sha256(raw);
  const time = triggered(headers.get("x-shopify-triggered-at"), now);
  const reason = time.fault ?? (isTest(headers) ? TEST : null);
  const isOfShop = TOPICS.indexOf(named) >= TOPICS.indexOf("customers/data_request");
  return {
    source_system: "shopify",
    source_store_id: shop,
    topic: named,
    webhook_id: matching(headers, "x-shopify-webhook-id", ID) ??
      `derived-${await sha256(
        new TextEncoder().encode(`${shop}\n${named}\n${digest}\n${time.iso ?? "None"}`),
      )}`,
    event_id: matching(headers, "x-shopify-event-id", ID),
    triggered_at: time.iso,
    api_version: matching(headers, "x-shopify-api-version", /^[0-9A-Za-z-]{1,32}$/),
    body_base64: reason !== null && isOfShop ? null : base64(raw),
    body_sha256: digest,
    state: reason === null ? null : "unusable",
    reason,
  };
}

const ID = /^[!-~]{1,255}$/;
const TEST = "a test delivery from Shopify's admin: its sample goes on no label";

/** The shop that the delivery claims to come from, null when the header does not name one. */
export function claimedShop(headers: Headers): string | null {
  return shopDomain(headers.get("x-shopify-shop-domain") ?? "");
}

/** A header's value of that form. (One that is given twice has a comma and a space in it, as no form here has.) */
function matching(headers: Headers, name: string, form: RegExp): string | null {
  const value = headers.get(name);
  return value !== null && form.test(value) ? value : null;
}

function triggered(text: string | null, now: number): { iso: string | null; fault: string | null } {
  if (text === null) return { iso: null, fault: null };
  const time = instant(text);
  if (!time?.hasOffset) {
    return { iso: null, fault: "X-Shopify-Triggered-At is not one ISO 8601 time with its offset" };
  }
  const age = now - time.milliseconds;
  const fault = age > OLDEST || age < -NEWEST
    ? "replay suspected: X-Shopify-Triggered-At is over 48 h old or 10 min ahead"
    : null;
  return { iso: time.iso, fault };
}

function isTest(headers: Headers): boolean {
  return (headers.get("x-shopify-test") ?? "").split(",").some((value) =>
    value.trim().toLowerCase() === "true"
  );
}

async function sha256(bytes: Bytes): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** In pieces, since a call takes a bounded number of arguments. */
export function base64(bytes: Bytes): string {
  const pieces = [];
  for (let start = 0; start < bytes.length; start += 32_766) {
    pieces.push(btoa(String.fromCharCode(...bytes.subarray(start, start + 32_766))));
  }
  return pieces.join("");
}
