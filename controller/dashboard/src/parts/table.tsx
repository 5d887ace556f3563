// A table that can be searched and sorted and shows 10,000 rows without drawing them all.

import type { ComponentChildren } from "preact";
import { useMemo, useState } from "preact/hooks";
import { count } from "../format";

export interface Column<T> {
  name: string;
  cell: (row: T) => ComponentChildren;
  /** What the column is sorted and searched by; a column without it is neither. */
  by?: (row: T) => string | number;
  /** Figures stand on the right. */
  figure?: boolean;
}

const PAGE = 50;

interface Props<T> {
  label: string;
  rows: T[];
  columns: Column<T>[];
  keyOf: (row: T) => string;
  search?: boolean;
  empty: ComponentChildren;
}

export function Table<T>({ label, rows, columns, keyOf, search, empty }: Props<T>) {
  const [text, setText] = useState("");
  const [order, setOrder] = useState<{ column: number; down: boolean } | null>(null);
  const [page, setPage] = useState(0);

  const found = useMemo(() => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = words.length
      ? rows.filter((row) => {
          const line = columns.map((c) => c.by?.(row) ?? "").join(" ").toLowerCase();
          return words.every((word) => line.includes(word));
        })
      : rows;
    const by = order && columns[order.column]?.by;
    if (!by) return matches;
    const sign = order.down ? -1 : 1;
    return [...matches].sort((a, b) => {
      const [x, y] = [by(a), by(b)];
      return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
    });
  }, [rows, columns, text, order]);

  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  const at = Math.min(page, pages - 1);
  const sort = (column: number) => setOrder((o) => ({ column, down: o?.column === column ? !o.down : false }));

  return (
    <div class="table">
      {search && (
        <label class="search">
          <span>Search {label.toLowerCase()}</span>
          <input
            type="search"
            value={text}
            onInput={(e) => {
              setText(e.currentTarget.value);
              setPage(0);
            }}
          />
          <output aria-live="polite">{found.length === rows.length ? count(rows.length) : `${count(found.length)} of ${count(rows.length)}`}</output>
        </label>
      )}
      {rows.length === 0 ? (
        <p class="nothing">{empty}</p>
      ) : (
        <div class="scroll" tabIndex={0} role="region" aria-label={label}>
          <table>
            <caption>{label}</caption>
            <thead>
              <tr>
                {columns.map((column, i) => (
                  <th key={column.name} scope="col" class={column.figure ? "figure" : ""} aria-sort={order?.column !== i ? "none" : order.down ? "descending" : "ascending"}>
                    {column.by ? <button onClick={() => sort(i)}>{column.name}</button> : column.name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {found.slice(at * PAGE, (at + 1) * PAGE).map((row) => (
                <tr key={keyOf(row)}>
                  {columns.map((column) => (
                    <td key={column.name} class={column.figure ? "figure" : ""}>{column.cell(row)}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {pages > 1 && (
        <nav class="pages" aria-label={`Pages of ${label.toLowerCase()}`}>
          <button disabled={at === 0} onClick={() => setPage(at - 1)}>Previous</button>
          <span>{at + 1} of {pages}</span>
          <button disabled={at === pages - 1} onClick={() => setPage(at + 1)}>Next</button>
        </nav>
      )}
    </div>
  );
}
