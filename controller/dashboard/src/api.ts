// The REST interface under /api/v1, as far as the pages read it. The types follow `proto/src/rest.rs`.

export interface Profile {
  architecture: string;
  instruction_sets: string[];
  cpu_model: string;
  cores: number;
  inference_threads: number;
  cpu_quota_milli: number | null;
  l1d_bytes: number;
  l2_bytes: number;
  l3_bytes: number;
  memory_bytes: number;
  storage_bytes: number;
  execution_providers: string[];
  onnxruntime_version: string;
  operating_system: string;
}

export interface Device {
  id: string;
  state: string;
  labels: Record<string, string>;
  class: string | null;
  class_reason: string | null;
  profile: Profile | null;
  connected: boolean;
  last_seen_at_ms: number | null;
  enrolled_at_ms: number;
}

export interface DeviceClass {
  id: string;
  architecture: string;
  vector: string;
  inference_threads: number;
  devices: number;
}

export interface Model {
  name: string;
  version: number;
  task: string;
  macs: number;
  parameters: number;
  size_bytes: number;
  created_at_ms: number;
}

export interface Policy {
  name: string;
  model: string;
  classes?: string[];
  slo_p95_us: number;
  request_batch: number;
  accuracy_floor: number;
  max_size_bytes?: number | null;
  criterion: string;
  schedule: string;
}

/** Every metric of the engine's report has some of these; which, depends on the task. */
export interface Worth {
  metric: string;
  accuracy?: number;
  recall?: number;
  f1?: number;
  map50?: number;
  map50_95?: number;
  perplexity?: number;
  agreement?: number;
  latency_p50_us: number;
  latency_p95_us: number;
  macs: number;
  parameters: number;
  size_bytes: number;
  memory_bytes: number;
}

export interface FrontPoint {
  latency_us: number;
  divergence: number;
}

export interface Report {
  criterion: string;
  batch: number;
  dense: Worth;
  pruned: Worth;
  speedup_p50: number;
  accuracy_lost_bound_95: number;
  agreement: number;
  predicted_latency_p50_us: number;
  predicted_dense_latency_us: number;
  widths: { group: string; kept: number; of: number }[];
  factored: { layer: string; rank: number; of: number }[];
  frozen: { name: string; reason: string }[];
  front: FrontPoint[];
  seconds: Record<string, number>;
  warnings: string[];
}

export interface Variant {
  id: string;
  class: string;
  model: string;
  model_version: number;
  budget_revision: number;
  budget_us: number;
  state: string;
  digest: string | null;
  report: Report;
  rejection: string | null;
  created_at_ms: number;
}

export interface Job {
  id: string;
  kind: string;
  state: string;
  attempt: number;
  stage: string;
  progress: number;
  error: string | null;
  subject: string;
}

export interface Rollout {
  id: string;
  class: string;
  bundle: string;
  state: string;
  reason: string;
  rules: { waves?: string[]; selector?: string };
  wave: number;
  target: number;
  devices: number;
  given: number;
  proven: number;
  failed: number;
  returning: number;
  readings: Reading[];
  begun_by: string;
  approved_by: string;
  created_at_ms: number;
  since_ms: number;
}

export interface Count {
  events: number;
  trials: number;
}

/** What a gate of a rollout says, and what it rests on. */
export interface Reading {
  gate: "errors" | "latency" | "accuracy";
  verdict: "undecided" | "harmless" | "harmful";
  canary: Count;
  control: Count | null;
  ln_harmful: number;
  ln_harmless: number;
}

export interface Deployment {
  device: string;
  class: string;
  sequence: number;
  rollout: string;
  bundle: string;
  digest: string;
  variant: string;
  state: string;
  check: string | null;
  detail: string | null;
  assigned_at_ms: number;
  changed_at_ms: number;
}

/** What a device or a class served over a period, of one bundle. */
export interface Served {
  bundle: string;
  rung: string;
  start_ms: number;
  requests: number;
  errors: number;
  p50_us: number;
  p95_us: number;
  labelled: number;
  accuracy: number | null;
}

export interface Window extends Served {
  device: string;
  class: string;
  number: number;
  duration_ms: number;
}

/** Windows added up over a minute, an hour or a day. */
export interface Rollup extends Served {
  span: "minute" | "hour" | "day";
  windows: number;
  p99_us: number;
}

export interface Decision {
  id: string;
  class: string;
  model: string;
  policy: string;
  outcome: { outcome: "hold" | "prune-more" | "prune-less"; reason: string; budget_us?: number };
  evidence: {
    devices: { windows: number; requests: number; p50_us: number; p95_us: number }[];
    planned_us: number;
    budget_us: number;
    front: FrontPoint[];
    proven_seconds: number;
  };
  budget_revision: number | null;
  at_ms: number;
}

export interface AuditEntry {
  sequence: number;
  actor: string;
  action: string;
  subject: string;
  hash: string;
  at_ms: number;
}

/** Counts of the whole fleet, whose size does not depend on it. */
export interface Fleet {
  devices: { state: string; count: number }[];
  connected: number;
  deployments: { class: string; state: string; count: number }[];
}

const TOKEN = "pleach-token";

export const token = {
  get: (): string | null => sessionStorage.getItem(TOKEN),
  set: (text: string) => sessionStorage.setItem(TOKEN, text),
  clear: () => sessionStorage.removeItem(TOKEN),
};

/** A refusal, in the controller's own words (RFC 9457). */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    detail: string,
  ) {
    super(detail);
  }
}

/** One request; the path begins behind `/api/v1/`. */
export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  headers.set("authorization", `Bearer ${token.get() ?? ""}`);
  const response = await fetch(`/api/v1/${path}`, { ...init, headers, cache: "no-store" });
  if (!response.ok) {
    const problem = (await response.json().catch(() => null)) as { detail?: string } | null;
    throw new Refusal(response.status, problem?.detail ?? `the controller answered ${response.status}`);
  }
  return response;
}

export async function get<T>(path: string): Promise<T> {
  return (await call(path)).json() as Promise<T>;
}

export async function list<T>(path: string): Promise<T[]> {
  return (await get<{ items: T[] }>(path)).items;
}
