// Small parts that every page is made of.

import type { ComponentChildren } from "preact";
import { ago, moment } from "../format";

/** How a state is meant: the colour follows this, and the words never depend on the colour. */
const MEANING: Record<string, "good" | "busy" | "bad" | "calm"> = {
  active: "good",
  proven: "good",
  completed: "good",
  succeeded: "good",
  made: "good",
  sealed: "good",
  connected: "good",
  met: "good",
  running: "busy",
  "waiting-for-approval": "busy",
  paused: "busy",
  undecided: "busy",
  harmless: "good",
  harmful: "bad",
  delivering: "busy",
  staged: "busy",
  probation: "busy",
  offered: "busy",
  halting: "bad",
  failed: "bad",
  refused: "bad",
  rejected: "bad",
  revoked: "bad",
  aborted: "bad",
  reverted: "bad",
  silent: "bad",
  missed: "bad",
};

export function State({ of }: { of: string }) {
  return <span class={`state ${MEANING[of] ?? "calm"}`}>{of.replaceAll("-", " ")}</span>;
}

export function Card({ title, aside, children }: { title: string; aside?: ComponentChildren; children: ComponentChildren }) {
  return (
    <section class="card">
      <header>
        <h2>{title}</h2>
        {aside}
      </header>
      {children}
    </section>
  );
}

export function Tile({ label, value, note, bad }: { label: string; value: ComponentChildren; note?: ComponentChildren; bad?: boolean }) {
  return (
    <div class={bad ? "tile bad" : "tile"}>
      <dt>{label}</dt>
      <dd>{value}</dd>
      {note && <dd class="note">{note}</dd>}
    </div>
  );
}

/** A share of a whole, written and drawn. */
export function Bar({ share, label, limit, bad }: { share: number; label: string; limit?: number; bad?: boolean }) {
  const width = Math.max(0, Math.min(1, share));
  return (
    <span class={bad ? "bar bad" : "bar"}>
      <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
        <rect class="rail" width="100" height="8" rx="1" />
        <rect class="fill" width={width * 100} height="8" rx="1" />
        {limit !== undefined && <rect class="limit" x={Math.min(99, limit * 100)} width="1" height="8" />}
      </svg>
      <span>{label}</span>
    </span>
  );
}

export function Ago({ ms }: { ms: number | null }) {
  return ms === null ? <>never</> : <time title={moment(ms)} dateTime={new Date(ms).toISOString()}>{ago(ms)}</time>;
}

export function Facts({ of }: { of: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {of.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** What stands where nothing is yet: why, and what to do. */
export function Nothing({ children }: { children: ComponentChildren }) {
  return <p class="nothing">{children}</p>;
}

/** The refusal of a read, or that it is under way. */
export function Waiting({ error }: { error: Error | null }) {
  return error ? <p class="error" role="alert">{error.message}</p> : <p class="nothing" aria-busy="true">Reading…</p>;
}
