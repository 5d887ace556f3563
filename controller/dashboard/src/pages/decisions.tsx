import type { Decision } from "../api";
import { micros } from "../format";
import { useList } from "../live";
import { Ago, Card, Nothing, Waiting } from "../parts/basics";

export function Decisions() {
  const { items, error } = useList<Decision>("decisions?limit=200");
  if (!items) return <Waiting error={error} />;
  return (
    <>
      <h1>Decisions</h1>
      {items.length === 0 && <Nothing>The loop has decided nothing yet: it waits for enough windows of proven bundles.</Nothing>}
      {[...items].reverse().map((d) => (
        <Card key={d.id} title={`${d.outcome.outcome.replace("-", " ")} · ${d.class}`} aside={<Ago ms={d.at_ms} />}>
          <p>{d.outcome.reason}</p>
          <p class="soft">
            Policy {d.policy}, model {d.model}. Budget {micros(d.evidence.budget_us)}{d.outcome.budget_us !== undefined && <> → <strong>{micros(d.outcome.budget_us)}</strong></>}
            {d.budget_revision !== null && <> (revision {d.budget_revision})</>}; planned for {micros(d.evidence.planned_us)}; proven for {d.evidence.proven_seconds} s.
          </p>
          <details>
            <summary>Evidence of {d.evidence.devices.length} {d.evidence.devices.length === 1 ? "device" : "devices"}</summary>
            <table>
              <thead><tr><th scope="col" class="figure">Windows</th><th scope="col" class="figure">Requests</th><th scope="col" class="figure">Median</th><th scope="col" class="figure">p95</th></tr></thead>
              <tbody>{d.evidence.devices.map((e, i) => <tr key={i}><td class="figure">{e.windows}</td><td class="figure">{e.requests}</td><td class="figure">{micros(e.p50_us)}</td><td class="figure">{micros(e.p95_us)}</td></tr>)}</tbody>
            </table>
          </details>
        </Card>
      ))}
    </>
  );
}
