//! `cargo xtask bench graph`: how much of each model can be pruned, and how long it takes to find out.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use comfy_table::{Table, presets};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::{Limits, Model};
use pleach_prune::coupling::{Coupling, measure_shapes};
use pleach_prune::fold;
use serde::Serialize;

use super::Output;
use crate::onnxruntime;
use crate::workspace::Workspace;

/// Options of the bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How to print
    #[arg(short, long, default_value = "text")]
    output: Output,
}

/// What was measured of one model.
#[derive(Serialize)]
struct Row {
    model: String,
    nodes: usize,
    groups: usize,
    prunable_macs_share: f64,
    analysis_ms: f64,
}

/// Measures every model of the fixtures.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let runtime = OrtRuntime::new(OrtOptions { library: Some(onnxruntime::ensure()?), threads: NonZeroUsize::MIN })?;
    let mut rows = Vec::new();
    for path in models(&workspace.root.join("tests/fixtures"))? {
        rows.push(measure(&workspace.root, &path, &runtime).with_context(|| path.display().to_string())?);
    }
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Text => println!("{}", table(&rows)),
    }
    Ok(())
}

/// Every .onnx file one folder deep, in name order.
fn models(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let inside = std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path());
        found.extend(inside.filter(|p| p.extension().is_some_and(|e| e == "onnx")));
    }
    found.sort();
    Ok(found)
}

fn measure(root: &Path, path: &Path, runtime: &OrtRuntime) -> anyhow::Result<Row> {
    let bytes = std::fs::read(path)?;
    let begun = Instant::now();
    let model = fold::fold(&Model::decode(&bytes, &Limits::default())?)?;
    let shapes = measure_shapes(&model, runtime, &BTreeMap::new())?;
    let coupling = Coupling::find(&model, &shapes);
    let macs = coupling.prunable_macs(&model, &shapes);
    Ok(Row {
        model: path.strip_prefix(root).unwrap_or(path).display().to_string(),
        nodes: model.nodes().count(),
        groups: coupling.groups.len(),
        prunable_macs_share: macs.prunable as f64 / macs.total.max(1) as f64,
        analysis_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["MODEL", "NODES", "GROUPS", "PRUNABLE", "ANALYSIS"]);
    for row in rows {
        let share = format!("{:.1} %", row.prunable_macs_share * 100.0);
        let counts = [row.nodes, row.groups].map(|n| n.to_string());
        table.add_row([&row.model, &counts[0], &counts[1], &share, &format!("{:.0} ms", row.analysis_ms)]);
    }
    table.trim_fmt()
}
