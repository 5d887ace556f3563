// What several pages work out from rows.

import type { Deployment, Device, Fleet, Policy, Served, Worth } from "./api";

/** A device is silent when its stream is closed. */
export function deviceState(device: Device): string {
  if (device.state !== "active") return device.state;
  return device.connected ? "connected" : "silent";
}

/** The policy that governs a class: of those that cover it, the one applied last. */
export function policyOf(policies: Policy[], id: string): Policy | null {
  return policies.filter((p) => !p.classes?.length || p.classes.includes(id)).at(-1) ?? null;
}

export interface Measured {
  requests: number;
  errors: number;
  /** Median over the periods of their 95th percentiles. */
  p95_us: number | null;
  accuracy: number | null;
}

/** Sums up what was served by the newest bundle, rows oldest first: the typical 95th percentile, and accuracy by the labelled samples. */
export function measured(rows: Served[]): Measured {
  const served = rows.filter((r) => r.requests > 0 && r.bundle === rows.at(-1)?.bundle);
  const p95 = served.map((r) => r.p95_us).sort((a, b) => a - b);
  const labelled = served.filter((r) => r.accuracy !== null && r.labelled > 0);
  const samples = labelled.reduce((sum, r) => sum + r.labelled, 0);
  return {
    requests: served.reduce((sum, r) => sum + r.requests, 0),
    errors: served.reduce((sum, r) => sum + r.errors, 0),
    p95_us: p95[Math.floor(p95.length / 2)] ?? null,
    accuracy: samples ? labelled.reduce((sum, r) => sum + r.accuracy! * r.labelled, 0) / samples : null,
  };
}

/** The figure that a task is judged by, with its name. */
export function quality(worth: Worth): { name: string; value: string } {
  const share = (x: number) => `${(x * 100).toFixed(2)} %`;
  if (worth.perplexity !== undefined) return { name: "perplexity", value: worth.perplexity.toFixed(3) };
  if (worth.map50 !== undefined) return { name: "mAP@0.5", value: share(worth.map50) };
  if (worth.metric === "entity_f1" && worth.f1 !== undefined) return { name: "entity F1", value: share(worth.f1) };
  if (worth.accuracy !== undefined) return { name: "accuracy", value: share(worth.accuracy) };
  if (worth.agreement !== undefined) return { name: "agreement", value: share(worth.agreement) };
  return { name: worth.metric, value: "–" };
}

export function total(fleet: Fleet, state: string): number {
  return fleet.devices.filter((d) => d.state === state).reduce((sum, d) => sum + d.count, 0);
}

/** Devices whose newest assignment is in one of the states. */
export function deployed(fleet: Fleet, states: string[]): number {
  return fleet.deployments.filter((d) => states.includes(d.state)).reduce((sum, d) => sum + d.count, 0);
}

export const UNDER_WAY = ["desired", "offered", "delivering", "staged", "probation"];
export const WENT_WRONG = ["failed", "refused"];

export function wentWrong(deployment: Deployment): boolean {
  return WENT_WRONG.includes(deployment.state);
}
