// ISO 8601 times, as Python writes them: the ids that are derived from one must be the same in both.

const TIME =
  /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?(Z|[+-]\d\d(?::?\d\d)?)?)?$/;

export interface Instant {
  milliseconds: number;
  /** In UTC, with microseconds where it has any; what is finer is cut. */
  iso: string;
  isDate: boolean;
  hasOffset: boolean;
}

/** The time that a text says, in UTC unless it says otherwise; null for what is none. */
export function instant(text: string): Instant | null {
  const found = TIME.exec(text);
  if (!found) return null;
  const [year, month, day, hour, minute, second] = found.slice(1, 7).map((part) => Number(part ?? 0));
  const local = new Date(0);
  local.setUTCFullYear(year, month - 1, day);
  const isDay = year >= 1 && local.getUTCMonth() === month - 1 && local.getUTCDate() === day;
  if (!isDay || hour > 23 || minute > 59 || second > 59) return null;
  local.setUTCHours(hour, minute, second);
  const offset = minutesEast(found[8] ?? "Z");
  const micros = `${found[7] ?? ""}000000`.slice(0, 6);
  const utc = new Date(local.getTime() - offset * 60_000);
  if (Math.abs(offset) >= 1440 || utc.getUTCFullYear() < 1 || utc.getUTCFullYear() > 9999) return null;
  return {
    milliseconds: utc.getTime() + Number(micros) / 1000,
    iso: `${utc.toISOString().slice(0, 19)}${micros === "000000" ? "" : `.${micros}`}+00:00`,
    isDate: found[4] === undefined,
    hasOffset: found[8] !== undefined,
  };
}

function minutesEast(offset: string): number {
  if (offset === "Z") return 0;
  const digits = offset.slice(1).replace(":", "").padEnd(4, "0");
  const minutes = Number(digits.slice(0, 2)) * 60 + Number(digits.slice(2));
  return offset.startsWith("-") ? -minutes : minutes;
}
