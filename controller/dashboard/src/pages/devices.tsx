import { useMemo, useState } from "preact/hooks";
import { Link } from "wouter-preact";
import { type Deployment, type Device, type Window, call } from "../api";
import { deviceState } from "../figures";
import { bytes, micros, moment, percent, short } from "../format";
import { useList, useLive } from "../live";
import { Ago, Card, Facts, Nothing, State, Waiting } from "../parts/basics";
import { LatencyChart } from "../parts/chart";
import { type Column, Table } from "../parts/table";

interface Row {
  device: Device;
  deployment: Deployment | undefined;
}

const labels = (device: Device) => Object.entries(device.labels).map(([k, v]) => `${k}=${v}`);

const COLUMNS: Column<Row>[] = [
  { name: "Device", by: (r) => r.device.id, cell: (r) => <Link href={`/devices/${encodeURIComponent(r.device.id)}`}>{r.device.id}</Link> },
  { name: "State", by: (r) => deviceState(r.device), cell: (r) => <State of={deviceState(r.device)} /> },
  { name: "Class", by: (r) => r.device.class ?? "", cell: (r) => r.device.class && <Link href={`/classes/${encodeURIComponent(r.device.class)}`}>{r.device.class}</Link> },
  { name: "Bundle", by: (r) => r.deployment?.state ?? "", cell: (r) => r.deployment && <><State of={r.deployment.state} /> <code title={r.deployment.digest}>{short(r.deployment.digest, 8)}</code></> },
  { name: "Labels", by: (r) => labels(r.device).join(" "), cell: (r) => labels(r.device).map((l) => <code key={l} class="label">{l}</code>) },
  { name: "Seen", by: (r) => r.device.last_seen_at_ms ?? 0, cell: (r) => <Ago ms={r.device.last_seen_at_ms} /> },
];

const STATES = ["any", "connected", "silent", "pending", "revoked"];

export function Devices() {
  const { items: devices, error } = useList<Device>("devices?profile=false");
  const { items: deployments } = useList<Deployment>("deployments");
  const [state, setState] = useState("any");
  const rows = useMemo(() => {
    const of = new Map(deployments?.map((d) => [d.device, d]));
    return (devices ?? []).map((device) => ({ device, deployment: of.get(device.id) })).filter((r) => state === "any" || deviceState(r.device) === state);
  }, [devices, deployments, state]);
  return (
    <>
      <h1>Devices</h1>
      {devices ? (
        <>
          <label class="filter">
            <span>State</span>
            <select value={state} onChange={(e) => setState(e.currentTarget.value)}>{STATES.map((s) => <option key={s}>{s}</option>)}</select>
          </label>
          <Table label="Devices" rows={rows} columns={COLUMNS} keyOf={(r) => r.device.id} search empty={devices.length ? "No device is in this state." : <>No device yet: make a token with <code>pleach token create</code> and start <code>pleach-agent run</code> with it.</>} />
        </>
      ) : (
        <Waiting error={error} />
      )}
    </>
  );
}

const WINDOWS: Column<Window>[] = [
  { name: "Begun", by: (w) => w.start_ms, cell: (w) => moment(w.start_ms) },
  { name: "Bundle", by: (w) => w.bundle, cell: (w) => <code title={w.bundle}>{short(w.bundle, 8)}</code> },
  { name: "Requests", by: (w) => w.requests, cell: (w) => w.requests, figure: true },
  { name: "Errors", by: (w) => w.errors, cell: (w) => w.errors, figure: true },
  { name: "Median", by: (w) => w.p50_us, cell: (w) => (w.requests ? micros(w.p50_us) : "–"), figure: true },
  { name: "p95", by: (w) => w.p95_us, cell: (w) => (w.requests ? micros(w.p95_us) : "–"), figure: true },
  { name: "Accuracy", by: (w) => w.accuracy ?? -1, cell: (w) => percent(w.accuracy), figure: true },
];

export function DevicePage({ id }: { id: string }) {
  const { data: device, error } = useLive<Device>(`devices/${encodeURIComponent(id)}`);
  const { items: deployments } = useList<Deployment>("deployments");
  const { items: windows } = useList<Window>(`windows?device=${encodeURIComponent(id)}&limit=300`);
  if (!device) return <Waiting error={error} />;
  const deployment = deployments?.find((d) => d.device === id);
  return (
    <>
      <h1>{id} <State of={deviceState(device)} /></h1>
      <Acts device={device} />
      <div class="columns">
        <Card title="What it should run, and what it proved">
          {deployment ? (
            <Facts
              of={[
                ["State", <State of={deployment.state} />],
                ["Why", deployment.check ? `${deployment.check}: ${deployment.detail ?? ""}` : "–"],
                ["Assignment", `number ${deployment.sequence}, ${moment(deployment.assigned_at_ms)}`],
                ["Last change", <Ago ms={deployment.changed_at_ms} />],
                ["Bundle", <code title={deployment.digest}>{short(deployment.digest, 16)}</code>],
                ["Rollout", deployment.rollout],
              ]}
            />
          ) : (
            <Nothing>Nothing is assigned: a bundle of its class is needed, and a policy that covers the class.</Nothing>
          )}
        </Card>
        <Card title="Device">
          <Facts
            of={[
              ["Class", device.class ? <Link href={`/classes/${encodeURIComponent(device.class)}`}>{device.class}</Link> : "not classified yet"],
              ["Because", device.class_reason ?? "–"],
              ["Labels", labels(device).map((l) => <code key={l} class="label">{l}</code>)],
              ["Enrolled", moment(device.enrolled_at_ms)],
              ["Seen", <Ago ms={device.last_seen_at_ms} />],
              ...(device.profile
                ? ([
                    ["Processor", device.profile.cpu_model],
                    ["Cores, threads", `${device.profile.cores}, ${device.profile.inference_threads}${device.profile.cpu_quota_milli ? `, quota ${device.profile.cpu_quota_milli / 1000}` : ""}`],
                    ["Memory", bytes(device.profile.memory_bytes)],
                    ["Storage", bytes(device.profile.storage_bytes)],
                    ["System", device.profile.operating_system],
                    ["ONNX Runtime", device.profile.onnxruntime_version],
                  ] as [string, string][])
                : []),
            ]}
          />
        </Card>
      </div>
      <Card title="Latency">{windows && <LatencyChart of={windows} slo_us={null} />}</Card>
      <Card title="Windows">{windows && <Table label="Windows" rows={[...windows].reverse()} columns={WINDOWS} keyOf={(w) => String(w.number)} empty="No window yet: they come while the device serves." />}</Card>
    </>
  );
}

/** Letting a device in and cutting it off; what the token may not do, the controller refuses in words. */
function Acts({ device }: { device: Device }) {
  const [said, setSaid] = useState<string | null>(null);
  const act = async (verb: "approve" | "revoke", question: string) => {
    if (!confirm(question)) return;
    try {
      await call(`devices/${encodeURIComponent(device.id)}/${verb}`, { method: "POST" });
      setSaid(null);
    } catch (error) {
      setSaid((error as Error).message);
    }
  };
  return (
    <p class="acts">
      {device.state === "pending" && <button class="primary" onClick={() => act("approve", `Let ${device.id} into the fleet?`)}>Approve</button>}
      {device.state !== "revoked" && <button class="danger" onClick={() => act("revoke", `Cut ${device.id} off for ever? Its stream ends at once and it gets no more keys.`)}>Revoke</button>}
      {said && <span class="error" role="alert">{said}</span>}
    </p>
  );
}
