import type { Job } from "../api";
import { percent } from "../format";
import { useList } from "../live";
import { Bar, State, Waiting } from "../parts/basics";
import { type Column, Table } from "../parts/table";

const COLUMNS: Column<Job>[] = [
  { name: "For", by: (j) => j.subject, cell: (j) => j.subject },
  { name: "Kind", by: (j) => j.kind, cell: (j) => j.kind },
  { name: "State", by: (j) => j.state, cell: (j) => <State of={j.state} /> },
  { name: "Stage", by: (j) => j.stage, cell: (j) => (j.state === "running" ? <Bar share={j.progress} label={`${j.stage}, ${percent(j.progress, 0)}`} /> : j.stage) },
  { name: "Attempt", by: (j) => j.attempt, cell: (j) => j.attempt, figure: true },
  { name: "Error", by: (j) => j.error ?? "", cell: (j) => j.error },
];

export function Jobs() {
  const { items, error } = useList<Job>("jobs?limit=500");
  return (
    <>
      <h1>Jobs</h1>
      {items ? <Table label="Jobs" rows={[...items].reverse()} columns={COLUMNS} keyOf={(j) => j.id} search empty="No job yet: they are made when a class has a budget and no variant for it." /> : <Waiting error={error} />}
    </>
  );
}
