import { useState } from "preact/hooks";
import type { AuditEntry } from "../api";
import { moment, short } from "../format";
import { useList } from "../live";
import { Waiting } from "../parts/basics";
import { type Column, Table } from "../parts/table";

const STEP = 500;

const COLUMNS: Column<AuditEntry>[] = [
  { name: "Number", by: (e) => e.sequence, cell: (e) => e.sequence, figure: true },
  { name: "When", by: (e) => e.at_ms, cell: (e) => moment(e.at_ms) },
  { name: "Who", by: (e) => e.actor, cell: (e) => e.actor },
  { name: "What", by: (e) => e.action, cell: (e) => e.action },
  { name: "On", by: (e) => e.subject, cell: (e) => e.subject },
  { name: "Hash", by: (e) => e.hash, cell: (e) => <code title={e.hash}>{short(e.hash)}</code> },
];

/** Entries are read oldest first, as the chain is verified. */
export function Audit() {
  const [after, setAfter] = useState(0);
  const { items, error } = useList<AuditEntry>(`audit?after=${after}&limit=${STEP}`);
  return (
    <>
      <h1>Audit</h1>
      <p class="soft">Each entry's hash covers the hash of the one before it, so nothing can be changed or left out unseen.</p>
      {items ? <Table label="Audit entries" rows={items} columns={COLUMNS} keyOf={(e) => String(e.sequence)} search empty="No more entries." /> : <Waiting error={error} />}
      <nav class="pages" aria-label="Parts of the log">
        <button disabled={after === 0} onClick={() => setAfter(Math.max(0, after - STEP))}>Earlier</button>
        <button disabled={(items?.length ?? 0) < STEP} onClick={() => setAfter(after + STEP)}>Later</button>
      </nav>
    </>
  );
}
