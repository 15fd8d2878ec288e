// How a shop is called: its myshopify.com domain in small letters.

/** The shop that a text names, null for what is none. (Only ASCII letters are equal without their case here.) */
export function shopDomain(text: string): string | null {
  return /^[a-z0-9][a-z0-9-]{0,62}\.myshopify\.com$/i.test(text) ? text.toLowerCase() : null;
}
