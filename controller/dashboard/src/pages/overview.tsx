import { Link } from "wouter-preact";
import type { Decision, Deployment, DeviceClass, Fleet, Job, Policy, Rollout, Rollup } from "../api";
import { UNDER_WAY, WENT_WRONG, deployed, measured, policyOf, total, wentWrong } from "../figures";
import { count, micros, percent } from "../format";
import { useList, useLive } from "../live";
import { Ago, Bar, Card, Nothing, State, Tile, Waiting } from "../parts/basics";

const RECENT = 8;

export function Overview() {
  const { data: fleet, error } = useLive<Fleet>("fleet");
  const { items: jobs } = useList<Job>("jobs?limit=200");
  const { items: rollouts } = useList<Rollout>("rollouts?limit=200");
  if (!fleet) return <Waiting error={error} />;
  const active = total(fleet, "active");
  const wrong = deployed(fleet, WENT_WRONG);
  const pending = total(fleet, "pending");
  return (
    <>
      <h1>Fleet</h1>
      <dl class="tiles">
        <Tile label="Connected" value={`${count(fleet.connected)} of ${count(active)}`} note="active devices" bad={fleet.connected < active} />
        <Tile label="Proven" value={count(deployed(fleet, ["proven"]))} note={`${count(deployed(fleet, UNDER_WAY))} under way`} />
        <Tile label="Failed or refused" value={count(wrong)} note="newest assignment" bad={wrong > 0} />
        <Tile label="Waiting for a person" value={count(pending)} note="pending devices" bad={pending > 0} />
        <Tile label="Rollouts" value={count(rollouts?.filter((r) => r.state === "running").length)} note="running" />
        <Tile label="Jobs" value={count(jobs?.filter((j) => j.state === "running" || j.state === "queued").length)} note="running or queued" />
      </dl>
      <Objectives />
      <div class="columns">
        <RecentDecisions />
        {wrong > 0 && <Failures />}
      </div>
    </>
  );
}

/** Each class against its objective and its floor. */
function Objectives() {
  const { items: classes, error } = useList<DeviceClass>("classes");
  const { items: policies } = useList<Policy>("policies");
  return (
    <Card title="Classes against their objectives">
      {!classes || !policies ? (
        <Waiting error={error} />
      ) : classes.length === 0 ? (
        <Nothing>No class yet: enrol a device with <code>pleach token create</code> and <code>pleach-agent run</code>.</Nothing>
      ) : (
        <div class="scroll" tabIndex={0} role="region" aria-label="Classes against their objectives">
          <table>
            <thead>
              <tr><th scope="col">Class</th><th scope="col" class="figure">Devices</th><th scope="col">p95 against objective</th><th scope="col">Accuracy and floor</th><th scope="col">Objective</th></tr>
            </thead>
            <tbody>{classes.map((c) => <Objective key={c.id} of={c} policy={policyOf(policies, c.id)} />)}</tbody>
          </table>
        </div>
      )}
    </Card>
  );
}

function Objective({ of, policy }: { of: DeviceClass; policy: Policy | null }) {
  const { items } = useList<Rollup>(`rollups?class=${encodeURIComponent(of.id)}&span=minute&limit=15`);
  const figures = items && measured(items);
  const slo = policy?.slo_p95_us ?? null;
  const late = figures?.p95_us != null && slo !== null && figures.p95_us > slo;
  return (
    <tr>
      <th scope="row"><Link href={`/classes/${encodeURIComponent(of.id)}`}>{of.id}</Link></th>
      <td class="figure">{count(of.devices)}</td>
      <td>{figures?.p95_us != null && slo !== null ? <Bar share={figures.p95_us / slo} label={`${micros(figures.p95_us)} of ${micros(slo)}`} bad={late} /> : micros(figures?.p95_us)}</td>
      <td>{percent(figures?.accuracy)}{policy && <span class="soft"> (floor {percent(policy.accuracy_floor)})</span>}</td>
      <td>{figures?.p95_us == null || slo === null ? <span class="soft">{policy ? "nothing measured yet" : "no policy"}</span> : <State of={late ? "missed" : "met"} />}</td>
    </tr>
  );
}

function RecentDecisions() {
  const { items, error } = useList<Decision>(`decisions?limit=${RECENT}`);
  return (
    <Card title="Newest decisions" aside={<Link href="/decisions">all</Link>}>
      {!items ? (
        <Waiting error={error} />
      ) : items.length === 0 ? (
        <Nothing>The loop has decided nothing yet: it waits for windows of proven bundles.</Nothing>
      ) : (
        <ul class="log">
          {[...items].reverse().map((d) => (
            <li key={d.id}><strong>{d.outcome.outcome.replace("-", " ")}</strong> {d.class} <Ago ms={d.at_ms} /><br /><span class="soft">{d.outcome.reason}</span></li>
          ))}
        </ul>
      )}
    </Card>
  );
}

function Failures() {
  const { items, error } = useList<Deployment>("deployments");
  return (
    <Card title="What went wrong">
      {!items ? (
        <Waiting error={error} />
      ) : (
        <ul class="log">
          {items.filter(wentWrong).sort((a, b) => b.changed_at_ms - a.changed_at_ms).slice(0, RECENT).map((d) => (
            <li key={d.device}><Link href={`/devices/${encodeURIComponent(d.device)}`}>{d.device}</Link> <State of={d.state} /> <Ago ms={d.changed_at_ms} /><br /><span class="soft">{d.check}{d.detail && `: ${d.detail}`}</span></li>
          ))}
        </ul>
      )}
    </Card>
  );
}
