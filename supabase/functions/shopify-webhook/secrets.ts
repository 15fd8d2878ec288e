// SHOPIFY_WEBHOOK_SECRET: entries `[shop=]secret[@not-after]`, by commas, and which of them may sign for a shop.

import { shopDomain } from "./shops.ts";
import type { Bytes } from "./signature.ts";
import { instant } from "./times.ts";

/** For one shop, or for every shop that has none of its own (null); until `notAfter`, if given. */
export interface Secret {
  text: string;
  key: Bytes;
  shop: string | null;
  notAfter: number | null;
}

// As Shopify makes secrets. Only what is bound to such a one is surely meant as a shop: others may hold '=' themselves.
const SHOPIFYS = /^(?:shpss_)?[0-9a-f]{32,}(?:@.*)?$/;
const SHOP_LIKE = /^[a-z0-9][a-z0-9-]{0,62}(?:\.myshopify\.com)?$/;

/** The secrets of the variable; none where it is not set. Throws an error that names an entry by its number only. */
export function readSecrets(variable: string): Secret[] {
  const entries = variable.split(",").map((part) => part.trim()).filter((part) => part);
  if (variable && !entries.length) {
    throw new Error("holds only commas; write the app's client secret, or remove it");
  }
  return entries.map((entry, index) => read(entry, `entry ${index + 1}`));
}

/** The keys that may have signed a webhook that claims to come from `shop` (null: from no shop we can name).
 *
 * A shop with entries of its own has no others, even when all of them have expired.
 */
export function keysFor(secrets: Secret[], shop: string | null, now: number): Bytes[] {
  const own = secrets.filter((secret) => shop !== null && secret.shop === shop);
  return (own.length ? own : secrets.filter((secret) => secret.shop === null))
    .filter((secret) => secret.notAfter === null || now <= secret.notAfter)
    .map((secret) => secret.key);
}

/** Whether what `keysFor` lets sign for `shop` can have been made for no other shop. */
export function proves(secrets: Secret[], shop: string): boolean {
  const own = secrets.filter((secret) => secret.shop === shop);
  const others = new Set(secrets.filter((secret) => secret.shop !== shop).map((secret) => secret.text));
  return own.length > 0 && own.every((secret) => !others.has(secret.text));
}

function read(entry: string, name: string): Secret {
  const equals = entry.indexOf("=");
  const shop = equals < 0 ? null : shopBefore(entry.slice(0, equals), entry.slice(equals + 1), name);
  const text = shop === null ? entry : entry.slice(equals + 1);
  const at = text.lastIndexOf("@");
  const notAfter = at < 0 ? null : end(text.slice(at + 1).trim(), name);
  const key = (notAfter === null ? text : text.slice(0, at)).trim();
  if (!key) throw new Error(`${name} holds no secret; write [shop=]secret[@not-after]`);
  return { text: key, key: new TextEncoder().encode(key), shop, notAfter };
}

function shopBefore(before: string, rest: string, name: string): string | null {
  const shop = shopDomain(before.trim());
  const meant = before.toLowerCase().includes(".myshopify.") ||
    (SHOP_LIKE.test(bare(before)) && SHOPIFYS.test(rest.trim()));
  if (shop === null && meant) {
    throw new Error(`${name} names its shop wrongly; write shop.myshopify.com=secret`);
  }
  return shop;
}

/** What is left of an address that people write: of https://corner.myshopify.com/admin the host. */
function bare(text: string): string {
  if (/[^\0-\x7f]/.test(text)) return "";
  const name = text.trim().toLowerCase().replace(/^https:\/\//, "").replace(/^http:\/\//, "");
  const admin = /^admin\.shopify\.com\/store\/([a-z0-9-]+)/.exec(name);
  return (admin ? admin[1] : name).split("/")[0].replace(/\.+$/, "");
}

function end(text: string, name: string): number | null {
  if (!/^[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ].*)?$/.test(text)) return null;
  const time = instant(text);
  if (!time) {
    throw new Error(`${name} ends with a date that is none; write @2026-12-31 or @2026-12-31T12:00:00Z`);
  }
  return time.isDate ? time.milliseconds + 86_399_999 : time.milliseconds;
}
