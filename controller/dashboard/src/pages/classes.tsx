import { Link } from "wouter-preact";
import type { Device, DeviceClass, Policy, Rollup, Variant } from "../api";
import { deviceState, measured, policyOf, quality } from "../figures";
import { bytes, count, micros, percent } from "../format";
import { useList } from "../live";
import { Ago, Card, Facts, Nothing, State, Waiting } from "../parts/basics";
import { FrontChart, LatencyChart } from "../parts/chart";
import { type Column, Table } from "../parts/table";

const COLUMNS: Column<DeviceClass>[] = [
  { name: "Class", by: (c) => c.id, cell: (c) => <Link href={`/classes/${encodeURIComponent(c.id)}`}>{c.id}</Link> },
  { name: "Architecture", by: (c) => c.architecture, cell: (c) => c.architecture },
  { name: "Vectors", by: (c) => c.vector, cell: (c) => c.vector },
  { name: "Threads", by: (c) => c.inference_threads, cell: (c) => c.inference_threads, figure: true },
  { name: "Devices", by: (c) => c.devices, cell: (c) => count(c.devices), figure: true },
];

export function Classes() {
  const { items, error } = useList<DeviceClass>("classes");
  return (
    <>
      <h1>Classes</h1>
      {items ? <Table label="Classes" rows={items} columns={COLUMNS} keyOf={(c) => c.id} empty="No class yet: classes appear when the first devices send their profiles." /> : <Waiting error={error} />}
    </>
  );
}

const VARIANTS: Column<Variant>[] = [
  { name: "Budget", by: (v) => v.budget_revision, cell: (v) => `${v.budget_revision}: ${micros(v.budget_us)}` },
  { name: "State", by: (v) => v.state, cell: (v) => <State of={v.state} /> },
  { name: "Predicted", by: (v) => v.report.predicted_latency_p50_us, cell: (v) => micros(v.report.predicted_latency_p50_us), figure: true },
  { name: "Quality", by: (v) => quality(v.report.pruned).value, cell: (v) => quality(v.report.pruned).value, figure: true },
  { name: "MACs", by: (v) => v.report.pruned.macs, cell: (v) => percent(v.report.pruned.macs / v.report.dense.macs, 0), figure: true },
  { name: "Size", by: (v) => v.report.pruned.size_bytes, cell: (v) => bytes(v.report.pruned.size_bytes), figure: true },
  { name: "Made", by: (v) => v.created_at_ms, cell: (v) => <Ago ms={v.created_at_ms} /> },
  { name: "Why rejected", by: (v) => v.rejection ?? "", cell: (v) => v.rejection },
];

const DEVICES: Column<Device>[] = [
  { name: "Device", by: (d) => d.id, cell: (d) => <Link href={`/devices/${encodeURIComponent(d.id)}`}>{d.id}</Link> },
  { name: "State", by: deviceState, cell: (d) => <State of={deviceState(d)} /> },
  { name: "Seen", by: (d) => d.last_seen_at_ms ?? 0, cell: (d) => <Ago ms={d.last_seen_at_ms} /> },
];

export function ClassPage({ id }: { id: string }) {
  const of = `class=${encodeURIComponent(id)}`;
  const { items: variants, error } = useList<Variant>(`variants?${of}&limit=50`);
  const { items: minutes } = useList<Rollup>(`rollups?${of}&span=minute&limit=240`);
  const { items: policies } = useList<Policy>("policies");
  const { items: devices } = useList<Device>("devices?profile=false");
  const policy = policies && policyOf(policies, id);
  const newest = variants?.filter((v) => v.state === "made").at(-1);
  const figures = minutes && measured(minutes);
  if (!variants) return <Waiting error={error} />;
  return (
    <>
      <h1>{id}</h1>
      <div class="columns">
        <Card title="Objective and evidence">
          <Facts
            of={[
              ["Policy", policy?.name ?? "none"],
              ["Objective (p95)", micros(policy?.slo_p95_us)],
              ["Measured p95", micros(figures?.p95_us)],
              ["Accuracy floor", percent(policy?.accuracy_floor)],
              ["Measured accuracy", percent(figures?.accuracy)],
              ["Requests, errors", figures ? `${count(figures.requests)}, ${count(figures.errors)}` : "–"],
            ]}
          />
        </Card>
        <Card title="Latency of all devices of the class, by minute">{minutes && <LatencyChart of={minutes} slo_us={policy?.slo_p95_us ?? null} />}</Card>
      </div>
      <Card title="Latency and loss: what other budgets would give">
        {newest ? <FrontChart front={newest.report.front} made_us={newest.report.predicted_latency_p50_us} dense_us={newest.report.predicted_dense_latency_us} /> : <Nothing>No variant yet: it needs a policy, a model and the timings of a device.</Nothing>}
      </Card>
      <Card title="Variants">
        <Table label="Variants" rows={[...variants].reverse()} columns={VARIANTS} keyOf={(v) => v.id} empty="No variant yet." />
      </Card>
      <Card title="Devices">
        {devices && <Table label="Devices of the class" rows={devices.filter((d) => d.class === id)} columns={DEVICES} keyOf={(d) => d.id} search empty="No device in this class." />}
      </Card>
    </>
  );
}
