import { useState } from "preact/hooks";
import { Link } from "wouter-preact";
import type { Model, Report, Variant } from "../api";
import { quality } from "../figures";
import { bytes, large, micros, moment, percent } from "../format";
import { useList } from "../live";
import { Bar, Card, Facts, Nothing, State, Waiting } from "../parts/basics";
import { FrontChart } from "../parts/chart";
import { type Column, Table } from "../parts/table";

const COLUMNS: Column<Model>[] = [
  { name: "Model", by: (m) => m.name, cell: (m) => <Link href={`/models/${encodeURIComponent(m.name)}`}>{m.name}</Link> },
  { name: "Version", by: (m) => m.version, cell: (m) => m.version, figure: true },
  { name: "Task", by: (m) => m.task, cell: (m) => m.task },
  { name: "MACs", by: (m) => m.macs, cell: (m) => large(m.macs), figure: true },
  { name: "Parameters", by: (m) => m.parameters, cell: (m) => large(m.parameters), figure: true },
  { name: "Size", by: (m) => m.size_bytes, cell: (m) => bytes(m.size_bytes), figure: true },
  { name: "Registered", by: (m) => m.created_at_ms, cell: (m) => moment(m.created_at_ms) },
];

export function Models() {
  const { items, error } = useList<Model>("models");
  return (
    <>
      <h1>Models</h1>
      {items ? <Table label="Models" rows={items} columns={COLUMNS} keyOf={(m) => `${m.name}/${m.version}`} empty={<>No model yet: upload one with <code>pleach model push</code>.</>} /> : <Waiting error={error} />}
    </>
  );
}

/** The newest variant of each class. */
function newest(variants: Variant[]): Variant[] {
  return [...new Map(variants.map((v) => [v.class, v])).values()];
}

export function ModelPage({ name }: { name: string }) {
  const { items, error } = useList<Variant>("variants?limit=500");
  const [chosen, choose] = useState<string | null>(null);
  if (!items) return <Waiting error={error} />;
  const of = newest(items.filter((v) => v.model === name));
  const variant = of.find((v) => v.class === chosen) ?? of[0];
  return (
    <>
      <h1>{name}</h1>
      {variant ? (
        <>
          <label class="filter">
            <span>Class</span>
            <select value={variant.class} onChange={(e) => choose(e.currentTarget.value)}>{of.map((v) => <option key={v.class}>{v.class}</option>)}</select>
          </label>
          <Pruned variant={variant} />
        </>
      ) : (
        <Nothing>No variant of this model yet: it needs a policy (<code>pleach policy apply</code>) and a device.</Nothing>
      )}
    </>
  );
}

function Pruned({ variant }: { variant: Variant }) {
  const { report } = variant;
  return (
    <>
      {variant.rejection && <p class="error" role="alert">{variant.rejection}</p>}
      <div class="columns">
        <Card title="Against the full model" aside={<State of={variant.state} />}>
          <Against report={report} />
        </Card>
        <Card title="Latency and loss">
          <FrontChart front={report.front} made_us={report.predicted_latency_p50_us} dense_us={report.predicted_dense_latency_us} />
        </Card>
      </div>
      <Card title="What each group of channels kept">
        <Groups report={report} />
      </Card>
      {report.warnings.length > 0 && <Card title="Warnings"><ul class="log">{report.warnings.map((w) => <li key={w}>{w}</li>)}</ul></Card>}
      {report.frozen.length > 0 && (
        <Card title="What is never narrowed">
          <ul class="log">{report.frozen.map((f) => <li key={f.name}><code>{f.name}</code><br /><span class="soft">{f.reason}</span></li>)}</ul>
        </Card>
      )}
      <Card title="How it was made">
        <Facts of={[["Criterion", report.criterion], ["Agreement with the full model", percent(report.agreement)], ["Loss on fresh data, 95 % sure", `below ${report.accuracy_lost_bound_95.toFixed(4)}`], ...Object.entries(report.seconds).map(([stage, s]) => [`Seconds: ${stage}`, s.toFixed(1)] as [string, string])]} />
      </Card>
    </>
  );
}

function Against({ report: { dense, pruned, ...report } }: { report: Report }) {
  const rows: [string, string, string][] = [
    [quality(pruned).name, quality(dense).value, quality(pruned).value],
    ["predicted on the class", micros(report.predicted_dense_latency_us), micros(report.predicted_latency_p50_us)],
    ["MACs", large(dense.macs), `${large(pruned.macs)} (${percent(pruned.macs / dense.macs, 0)})`],
    ["parameters", large(dense.parameters), `${large(pruned.parameters)} (${percent(pruned.parameters / dense.parameters, 0)})`],
    ["size", bytes(dense.size_bytes), `${bytes(pruned.size_bytes)} (${percent(pruned.size_bytes / dense.size_bytes, 0)})`],
    ["memory of one call", bytes(dense.memory_bytes), bytes(pruned.memory_bytes)],
  ];
  return (
    <table>
      <thead><tr><th scope="col">Figure</th><th scope="col" class="figure">Full</th><th scope="col" class="figure">Variant</th></tr></thead>
      <tbody>{rows.map(([name, full, variant]) => <tr key={name}><th scope="row">{name}</th><td class="figure">{full}</td><td class="figure">{variant}</td></tr>)}</tbody>
    </table>
  );
}

function Groups({ report }: { report: Report }) {
  if (report.widths.length === 0) return <Nothing>The model has no group of channels that could be narrowed.</Nothing>;
  return (
    <ul class="groups">
      {report.widths.map((w) => (
        <li key={w.group}><code>{w.group}</code><Bar share={w.kept / w.of} label={`${w.kept} of ${w.of}`} /></li>
      ))}
      {report.factored.map((f) => (
        <li key={`rank ${f.layer}`}><code>{f.layer}</code><Bar share={f.rank / f.of} label={`rank ${f.rank} of ${f.of}`} /></li>
      ))}
    </ul>
  );
}
