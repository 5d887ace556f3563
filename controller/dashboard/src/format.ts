// Figures for people: short, with their units.

const NONE = "–";

export function count(n: number | null | undefined): string {
  return n == null ? NONE : n.toLocaleString("en");
}

/** 21.9 M, 3.2 k. */
export function large(n: number): string {
  for (const [factor, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]] as const) {
    if (n >= factor) return `${(n / factor).toPrecision(3)} ${unit}`;
  }
  return String(n);
}

export function bytes(n: number | null | undefined): string {
  if (n == null) return NONE;
  for (const [factor, unit] of [[1 << 30, "GiB"], [1 << 20, "MiB"], [1 << 10, "KiB"]] as const) {
    if (n >= factor) return `${(n / factor).toPrecision(3)} ${unit}`;
  }
  return `${n} B`;
}

/** Microseconds as 640 µs, 14.1 ms or 2.3 s. */
export function micros(us: number | null | undefined): string {
  if (us == null || !Number.isFinite(us)) return NONE;
  if (us < 1_000) return `${us.toFixed(0)} µs`;
  if (us < 1_000_000) return `${(us / 1_000).toPrecision(3)} ms`;
  return `${(us / 1_000_000).toPrecision(3)} s`;
}

export function percent(share: number | null | undefined, digits = 1): string {
  return share == null || !Number.isFinite(share) ? NONE : `${(share * 100).toFixed(digits)} %`;
}

/** 5 s ago, 3 h ago. */
export function ago(ms: number | null | undefined): string {
  if (ms == null) return "never";
  const seconds = Math.max(0, (Date.now() - ms) / 1_000);
  for (const [length, unit] of [[86_400, "d"], [3_600, "h"], [60, "min"]] as const) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
  }
  return `${Math.floor(seconds)} s ago`;
}

export function moment(ms: number): string {
  return new Date(ms).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}

/** The first characters of a digest or identifier; the whole one goes into a title. */
export function short(text: string, length = 12): string {
  return text.length > length ? `${text.slice(0, length)}…` : text;
}
