// Reading a request's body without trusting its sender.

import type { Bytes } from "./signature.ts";

/** The raw body, null when it is longer than `limit` bytes; of such a one no more than that is held. */
export async function readBody(
  headers: Headers,
  body: ReadableStream<Uint8Array> | null,
  limit: number,
): Promise<Bytes | null> {
  if (Number(headers.get("content-length") ?? 0) > limit) return null;
  const pieces: Uint8Array[] = [];
  let length = 0;
  for await (const piece of body ?? []) {
    length += piece.length;
    if (length > limit) return null;
    pieces.push(piece);
  }
  const raw = new Uint8Array(length);
  pieces.reduce((start, piece) => (raw.set(piece, start), start + piece.length), 0);
  return raw;
}
