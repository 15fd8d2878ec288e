// The buffer's functions, through the project's own API.

// Shopify gives up on the whole request after 5 s.
const SECONDS = 4;

export class BufferError extends Error {}

export class Buffer {
  readonly #url: string;
  readonly #headers: Record<string, string>;

  constructor(url: string, key: string) {
    this.#url = url.replace(/\/+$/, "");
    this.#headers = { "apikey": key, "Content-Type": "application/json", "User-Agent": "esl_pipeline" };
    // The new keys are no tokens: the gateway makes one of the apikey. The old ones are, and are wanted as such.
    if (key.startsWith("eyJ")) this.#headers["Authorization"] = `Bearer ${key}`;
  }

  /** The JSON result of `public.<name>(p)`. Throws BufferError; nothing of the arguments is in its text. */
  async call(name: string, p: unknown): Promise<Record<string, unknown>> {
    let answer: Response;
    let result: unknown;
    try {
      answer = await fetch(`${this.#url}/rest/v1/rpc/${name}`, {
        method: "POST",
        headers: this.#headers,
        body: JSON.stringify({ p }),
        signal: AbortSignal.timeout(SECONDS * 1000),
        redirect: "error",
      });
      result = await answer.json();
    } catch (error) {
      throw new BufferError(`no answer to read from the project's API: ${(error as Error).name}`);
    }
    const { code, message } = Object(result);
    if (!answer.ok) throw new BufferError(`the project's API answers ${answer.status}: ${code} ${message}`);
    return Object(result);
  }
}
