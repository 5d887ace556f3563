// Charts by uPlot, redrawn when the width or the colours of the page change.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { FrontPoint, Served } from "../api";
import { micros } from "../format";

const HEIGHT = 220;

function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** `build` gives the options for the colours of now; the words under `label` say the same to those who cannot see the picture. */
function Chart({ label, data, build }: { label: string; data: uPlot.AlignedData; build: () => Omit<uPlot.Options, "width" | "height"> }) {
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const box = place.current;
    if (!box) return;
    let plot: uPlot | null = null;
    const draw = () => {
      plot?.destroy();
      plot = new uPlot({ ...build(), width: box.clientWidth, height: HEIGHT }, data, box);
    };
    draw();
    const sized = new ResizeObserver(() => plot?.setSize({ width: box.clientWidth, height: HEIGHT }));
    sized.observe(box);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", draw);
    return () => {
      sized.disconnect();
      scheme.removeEventListener("change", draw);
      plot?.destroy();
    };
  }, [data, build]);
  return <div class="chart" role="img" aria-label={label} ref={place} />;
}

function axes(vertical: (value: number) => string, horizontal?: (value: number) => string): uPlot.Axis[] {
  const look = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  const words = (format: (value: number) => string) => (_: uPlot, ticks: number[]) => ticks.map(format);
  return [{ ...look, ...(horizontal && { values: words(horizontal) }) }, { ...look, size: 72, values: words(vertical) }];
}

/** Latency over time of some periods, oldest first, against the objective. */
export function LatencyChart({ of, slo_us }: { of: Served[]; slo_us: number | null }) {
  const rows = of.filter((w) => w.requests > 0);
  if (rows.length < 2) return <p class="nothing">Not enough was served yet to draw latency over time.</p>;
  const data: uPlot.AlignedData = [
    rows.map((w) => w.start_ms / 1_000),
    rows.map((w) => w.p50_us),
    rows.map((w) => w.p95_us),
    rows.map(() => slo_us),
  ];
  const last = rows.at(-1)!;
  const label = `Latency of ${rows.length} periods; newest: median ${micros(last.p50_us)}, 95th percentile ${micros(last.p95_us)}${slo_us ? `, objective ${micros(slo_us)}` : ""}`;
  const build = () => ({
    scales: { y: { range: (_: uPlot, _low: number, high: number) => [0, high * 1.1] as [number, number] } },
    axes: axes(micros),
    series: [
      {},
      { label: "median", stroke: colour("--leaf"), width: 2, value: (_: uPlot, v: number) => micros(v) },
      { label: "p95", stroke: colour("--sky"), width: 2, value: (_: uPlot, v: number) => micros(v) },
      { label: "objective (p95)", stroke: colour("--rust"), width: 1, dash: [6, 4], value: (_: uPlot, v: number) => micros(v) },
    ],
  });
  return <Chart label={label} data={data} build={build} />;
}

/** What each latency costs in divergence from the full model, with the point that was made. */
export function FrontChart({ front, made_us, dense_us }: { front: FrontPoint[]; made_us: number | null; dense_us: number }) {
  if (front.length < 2) return <p class="nothing">The front of this variant has fewer than two points.</p>;
  const points = [...front].sort((a, b) => a.latency_us - b.latency_us);
  const nearest = made_us === null ? null : points.reduce((a, b) => (Math.abs(b.latency_us - made_us) < Math.abs(a.latency_us - made_us) ? b : a));
  const data: uPlot.AlignedData = [
    points.map((p) => p.latency_us),
    points.map((p) => p.divergence),
    points.map((p) => (p === nearest ? p.divergence : null)),
  ];
  const label = `Front of ${points.length} points, from ${micros(points[0]!.latency_us)} to ${micros(points.at(-1)!.latency_us)}; the full model needs ${micros(dense_us)}`;
  const build = () => ({
    scales: { x: { time: false } },
    axes: axes((v) => v.toPrecision(2), micros),
    series: [
      { label: "predicted latency", value: (_: uPlot, v: number) => micros(v) },
      { label: "divergence (nats)", stroke: colour("--sky"), width: 2, points: { show: true, size: 5 } },
      { label: "this variant", stroke: colour("--rust"), width: 0, points: { show: true, size: 11, fill: colour("--rust") } },
    ],
  });
  return <Chart label={label} data={data} build={build} />;
}
