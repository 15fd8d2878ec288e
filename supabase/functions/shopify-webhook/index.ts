// Shopify's webhooks into the inbox, without a server of one's own: the receiver of esl_pipeline as an Edge Function.
//
// It answers as the Python receiver does, and one suite tests both (esl_pipeline_tests/receiver/test_contract.py). What
// needs a memory (pace, groups, counts of wrong signatures) it leaves out. Nothing is fetched but the buffer's answer.

import { readBody } from "./body.ts";
import { Buffer, BufferError } from "./buffer.ts";
import { configuration } from "./configuration.ts";
import { claimedShop, delivery, DeliveryError, TOPICS } from "./delivery.ts";
import { keysFor, proves } from "./secrets.ts";
import { verify } from "./signature.ts";

// Hosted functions see the path without /functions/v1. APP_BASE_URL may be this function's address: `shopify connect`
// appends the receiver's path to it.
const PATH = /^(?:\/functions\/v1)?\/shopify-webhook(?:\/webhooks\/shopify)?(?:\/(.+))?$/;

interface Answer {
  status: number;
  body: { status: string } | { detail: string };
  headers?: Record<string, string>;
}

const { secrets, longest, url, key } = configuration((name) => Deno.env.get(name));
const buffer = new Buffer(url, key);
if (!secrets.length) {
  // 401 and not 503: a stranger shall not learn from the answer how the receiver is set up.
  console.warn("SHOPIFY_WEBHOOK_SECRET is not set: every webhook is refused with 401 until it is.");
}

Deno.serve(async (request) => {
  const { status, body, headers } = await answered(request);
  return Response.json(body, { status, headers });
});

async function answered(request: Request): Promise<Answer> {
  const found = PATH.exec(new URL(request.url).pathname);
  const topic = found?.[1] ?? null;
  if (found && topic === "health" && request.method === "GET") return await health();
  if (!found || (topic !== null && !TOPICS.includes(topic))) return refused(404, "Not Found");
  if (request.method !== "POST") return refused(405, "Method Not Allowed", { "Allow": "POST" });
  const answer = await keep(topic, request);
  const { status, body } = answer;
  const [claimed, shop, id] = ["topic", "shop-domain", "webhook-id"].map((name) =>
    plain(request.headers.get(`x-shopify-${name}`) ?? "")
  );
  const outcome = "status" in body ? body.status : `${status} ${body.detail}`;
  console[status === 200 ? "info" : "warn"](
    `webhook ${topic ?? claimed} from shop ${shop} with id ${id}, outcome ${outcome}`,
  );
  return answer;
}

/** Verified over the raw body before anything else of it or of the headers counts; then one call. */
async function keep(topic: string | null, { headers, body }: Request): Promise<Answer> {
  if ((headers.get("content-encoding") ?? "identity").toLowerCase() !== "identity") {
    return refused(415, "The body must be sent without a content encoding.");
  }
  const raw = await readBody(headers, body, longest);
  if (!raw) return refused(413, `The body is longer than ${longest} bytes.`);
  const now = Date.now();
  const keys = keysFor(secrets, claimedShop(headers), now);
  if (!await verify(raw, headers.get("x-shopify-hmac-sha256") ?? "", keys)) {
    return refused(401, "The signature is missing or wrong.");
  }
  try {
    const row = await delivery(topic, headers, raw, now);
    const proven = proves(secrets, row.source_store_id);
    return kept(await buffer.call("esl_inbox_add", { deliveries: [{ ...row, proven }] }));
  } catch (error) {
    if (error instanceof DeliveryError) return refused(400, error.message);
    if (!(error instanceof BufferError)) throw error;
    console.error(`the buffer kept nothing: ${plain(error.message)}`);
    return refused(503, "The delivery could not be kept; send it again.", { "Retry-After": "5" });
  }
}

function kept(says: Record<string, unknown>): Answer {
  if (says.refused) {
    return refused(429, `The shop has sent too much: ${says.refused}`, { "Retry-After": "600" });
  }
  return { status: 200, body: { status: says.inserted ? "accepted" : "duplicate" } };
}

function refused(status: number, detail: string, headers?: Record<string, string>): Answer {
  return { status, body: { detail }, headers };
}

let asked: Promise<Answer> | null = null;

/** Everybody may ask: all who ask at a time share one call. */
function health(): Promise<Answer> {
  asked ??= buffer.call("esl_version", {}).then(
    () => ({ status: 200, body: { status: "ok" } }),
    () => ({ status: 503, body: { status: "unavailable" } }),
  ).finally(() => asked = null);
  return asked;
}

/** A stranger's text in one line of plain ASCII, cut. */
function plain(text: string): string {
  return JSON.stringify(text.slice(0, 128))
    .replace(/[^ -~]/g, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
