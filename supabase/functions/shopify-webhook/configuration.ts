// What the environment says: SHOPIFY_WEBHOOK_SECRET and ESL_WEBHOOK_BODY_LIMIT_BYTES are ours to set (`supabase secrets
// set`), the rest is there in every hosted function.

import { readSecrets, type Secret } from "./secrets.ts";

export interface Configuration {
  secrets: Secret[];
  longest: number;
  url: string;
  key: string;
}

/** Reads the variables by `get`. Throws an error that names the variable, and none of its text. */
export function configuration(get: (name: string) => string | undefined): Configuration {
  return {
    secrets: named("SHOPIFY_WEBHOOK_SECRET", () => readSecrets(get("SHOPIFY_WEBHOOK_SECRET") ?? "")),
    longest: named(
      "ESL_WEBHOOK_BODY_LIMIT_BYTES",
      () => limit(get("ESL_WEBHOOK_BODY_LIMIT_BYTES") || "5000000"),
    ),
    url: named("SUPABASE_URL", () => address(get("SUPABASE_URL") ?? "")),
    key: secretKey(get("SUPABASE_SECRET_KEYS"), get("SUPABASE_SERVICE_ROLE_KEY")),
  };
}

function limit(text: string): number {
  const bytes = /^[0-9]+$/.test(text) ? Number(text) : NaN;
  if (!(bytes >= 1_000 && bytes <= 10_000_000)) throw new Error("write a number from 1000 to 10000000");
  return bytes;
}

function address(text: string): string {
  if (!/^https?:\/\/[^/?#@\s]+\/?$/.test(text)) throw new Error("write the project's address");
  return text;
}

/** One of the project's secret keys: the default one, else the first; else the legacy key. */
function secretKey(keys: string | undefined, legacy: string | undefined): string {
  const listed = named(
    "SUPABASE_SECRET_KEYS",
    () => Object(JSON.parse(keys || "{}")) as Record<string, unknown>,
  );
  const key = listed.default ?? Object.values(listed)[0] ?? legacy;
  if (typeof key !== "string" || !/^[!-~]+$/.test(key)) {
    throw new Error(
      "neither SUPABASE_SECRET_KEYS nor SUPABASE_SERVICE_ROLE_KEY holds a secret key of the project",
    );
  }
  return key;
}

function named<T>(variable: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    // A syntax error would quote the text.
    throw new Error(
      `${variable}: ${error instanceof SyntaxError ? "is not JSON" : (error as Error).message}`,
    );
  }
}
