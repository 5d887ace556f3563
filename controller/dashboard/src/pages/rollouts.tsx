import { useState } from "preact/hooks";
import { Link } from "wouter-preact";
import { type Count, type Reading, type Rollout, call } from "../api";
import { count, percent } from "../format";
import { useList } from "../live";
import { Ago, Bar, Card, Facts, State, Waiting } from "../parts/basics";
import { type Column, Table } from "../parts/table";

const OVER = ["completed", "aborted", "reverted"];

const share = (r: Rollout) => (r.devices ? r.proven / r.devices : 0);

const COLUMNS: Column<Rollout>[] = [
  { name: "Rollout", by: (r) => r.id, cell: (r) => <code>{r.id}</code> },
  { name: "Class", by: (r) => r.class, cell: (r) => <Link href={`/classes/${encodeURIComponent(r.class)}`}>{r.class}</Link> },
  { name: "State", by: (r) => r.state, cell: (r) => <State of={r.state} /> },
  { name: "Proven", by: share, cell: (r) => <Bar share={share(r)} label={`${r.proven} of ${r.devices}`} /> },
  { name: "Failed", by: (r) => r.failed, cell: (r) => r.failed, figure: true },
  { name: "Begun", by: (r) => r.created_at_ms, cell: (r) => <Ago ms={r.created_at_ms} /> },
  { name: "Because", by: (r) => r.reason, cell: (r) => r.reason },
];

export function Rollouts() {
  const { items, error } = useList<Rollout>("rollouts?limit=500");
  if (!items) return <Waiting error={error} />;
  const newest = [...items].reverse();
  return (
    <>
      <h1>Rollouts</h1>
      {newest.filter((r) => !OVER.includes(r.state)).map((r) => <UnderWay key={r.id} rollout={r} />)}
      <Table label="Rollouts" rows={newest} columns={COLUMNS} keyOf={(r) => r.id} search empty="No rollout yet: one begins when a bundle is sealed for a class." />
    </>
  );
}

function UnderWay({ rollout: r }: { rollout: Rollout }) {
  const waves = (r.rules.waves?.length ?? 0) + 1;
  return (
    <Card title={`${r.class}: wave ${Math.min(r.wave, waves - 1) + 1} of ${waves}`} aside={<State of={r.state} />}>
      <p>{r.reason}</p>
      <Bar share={share(r)} label={`${count(r.proven)} proven of ${count(r.devices)}`} limit={r.devices ? r.target / r.devices : 0} />
      <Facts
        of={[
          ["May have it now", count(r.target)],
          ["Were given it", count(r.given)],
          ["Failed or refused", count(r.failed)],
          ["On their way back", count(r.returning)],
          ["Devices", r.rules.selector ? <code>{r.rules.selector}</code> : "all of the class"],
          ["Begun by", r.begun_by || "the controller"],
          ["Approved by", r.approved_by || "–"],
          ["Since", <Ago ms={r.since_ms} />],
        ]}
      />
      {r.readings.length > 0 && <Gates readings={r.readings} />}
      <Acts rollout={r} />
    </Card>
  );
}

const rate = (c: Count) => `${percent(c.trials ? c.events / c.trials : null, 2)} of ${count(c.trials)}`;

/** The e-values of the two claims that race: how strongly each speaks against its claim. */
function Gates({ readings }: { readings: Reading[] }) {
  return (
    <table>
      <thead>
        <tr><th scope="col">Gate</th><th scope="col">Verdict</th><th scope="col" class="figure">Canary</th><th scope="col" class="figure">Control</th><th scope="col" class="figure">Against harmless</th><th scope="col" class="figure">Against harmful</th></tr>
      </thead>
      <tbody>
        {readings.map((g) => (
          <tr key={g.gate}>
            <th scope="row">{g.gate}</th>
            <td><State of={g.verdict} /></td>
            <td class="figure">{rate(g.canary)}</td>
            <td class="figure">{g.control ? rate(g.control) : "–"}</td>
            <td class="figure">{Math.exp(g.ln_harmful).toPrecision(3)}</td>
            <td class="figure">{Math.exp(g.ln_harmless).toPrecision(3)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

const DEEDS: Record<string, string[]> = {
  "waiting-for-approval": ["approve", "abort"],
  running: ["pause", "abort", "undo"],
  paused: ["resume", "abort", "undo"],
};

function Acts({ rollout }: { rollout: Rollout }) {
  const [said, setSaid] = useState<string | null>(null);
  const act = async (deed: string) => {
    if (deed !== "resume" && !confirm(`${deed} the rollout of ${rollout.class}?`)) return;
    try {
      await call(`rollouts/${encodeURIComponent(rollout.id)}/${deed}`, { method: "POST" });
      setSaid(null);
    } catch (error) {
      setSaid((error as Error).message);
    }
  };
  return (
    <p class="acts below">
      {(DEEDS[rollout.state] ?? []).map((deed) => <button key={deed} class={deed === "abort" || deed === "undo" ? "danger" : ""} onClick={() => act(deed)}>{deed}</button>)}
      {said && <span class="error" role="alert">{said}</span>}
    </p>
  );
}
