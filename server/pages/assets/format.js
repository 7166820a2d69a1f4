// Numbers as people read them. A dash stands for what is not known.

export const UNKNOWN = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A span of time given in seconds. */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 0.001) return "< 1 ms";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** How long ago, coarsely: a page that is read at a glance should not flicker. */
export function ago(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 1) return "now";
  if (seconds < 100) return `${Math.round(seconds)} s ago`;
  return `${duration(seconds)} ago`;
}

/** A number with about three digits that matter. */
export function amount(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 10_000) return `${new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value)}`;
  if (value >= 100 || Number.isInteger(value)) return new Intl.NumberFormat("en", { maximumFractionDigits: 0 }).format(value);
  return value.toFixed(value >= 10 ? 1 : 2);
}

/** A share given as 0..1. */
export function percent(share) {
  return known(share) ? `${Math.round(share * 100)}%` : UNKNOWN;
}
