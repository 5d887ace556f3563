//! `cargo xtask bench graph`: how much of each model can be pruned, how long it takes to find out, and whether it is true.
//!
//! Each model is measured in a process of its own, so that its peak memory is its own. The models are the project's fixtures and
//! those of other people that [`pleach_tests::models`] fetches.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use pleach_cli::inspect::{GivenShapes, Inspection, Subject};
use pleach_cli::table::bytes;
use pleach_domain::runtime::Runtime;
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::{Limits, Model};
use pleach_tests::models::real_models;
use serde::{Deserialize, Serialize};

use super::Output;
use crate::workspace::Workspace;
use crate::{onnxruntime, process};

/// Times a model is analysed; the fastest counts, as others may use this machine.
const REPETITIONS: usize = 3;

/// Options of the bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How to print
    #[arg(short, long, default_value = "text")]
    output: Output,
    /// Only models whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Measure this file alone, in this process; prints JSON
    #[arg(long, hide = true, value_name = "FILE")]
    measure: Option<PathBuf>,
    /// Shapes for that file, JSON
    #[arg(long, hide = true, default_value = "{}")]
    shapes: String,
}

/// What is measured of one model.
#[derive(Deserialize, Serialize)]
struct Measured {
    file_bytes: u64,
    nodes: usize,
    groups: usize,
    frozen: usize,
    macs: u64,
    prunable_macs_share: f64,
    analysis_ms: f64,
    /// Most memory of the analysis beyond what ONNX Runtime's library takes by itself.
    peak_bytes: u64,
    permutation: f64,
    mask: f64,
    optimization: f64,
    /// Largest difference at which a proof holds.
    bar: f64,
    holds: bool,
    /// Why the largest part that stays does.
    reason: Option<String>,
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    model: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// What came of one model.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Measured(Measured),
    Failed { error: String },
}

/// A model to be measured.
struct Case {
    name: String,
    path: PathBuf,
    shapes: GivenShapes,
}

/// Measures every model and prints what was found.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let library = onnxruntime::ensure()?;
    if let Some(path) = &options.measure {
        println!("{}", serde_json::to_string(&measure(path, &serde_json::from_str(&options.shapes)?, &library)?)?);
        return Ok(());
    }
    let mut rows = Vec::new();
    for case in cases(workspace)?.into_iter().filter(|case| case.name.contains(&options.only)) {
        eprintln!("{}", case.name);
        let mut child = Command::new(std::env::current_exe().context("cannot find this program")?);
        child.args(["bench", "graph", "--shapes", &serde_json::to_string(&case.shapes)?, "--measure"]).arg(&case.path);
        let measured = process::output(&mut child).and_then(|json| Ok(serde_json::from_str(&json)?));
        let outcome = measured.map_or_else(|e| Outcome::Failed { error: format!("{e:#}") }, Outcome::Measured);
        rows.push(Row { model: case.name, outcome });
    }
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Text => println!("{}", table(&rows)),
    }
    let failed = |row: &&Row| !matches!(&row.outcome, Outcome::Measured(measured) if measured.holds);
    match rows.iter().filter(failed).count() {
        0 => Ok(()),
        count => bail!("{count} models failed, or a proof did"),
    }
}

/// The fixtures, each .onnx file one folder deep, and the real models where they can be fetched.
fn cases(workspace: &Workspace) -> anyhow::Result<Vec<Case>> {
    let folder = workspace.root.join("tests/fixtures");
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let inside = std::fs::read_dir(entry?.path()).into_iter().flatten().flatten().map(|e| e.path());
        for path in inside.filter(|p| p.extension().is_some_and(|e| e == "onnx")) {
            let name = path.strip_prefix(&folder).unwrap_or(&path).with_extension("").display().to_string();
            cases.push(Case { name: name.trim_end_matches("/model").to_owned(), path, shapes: GivenShapes::new() });
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    match real_models() {
        Ok(models) => cases.extend(models.into_iter().map(|real| {
            let shapes = real.shapes.iter().map(|&(input, shape)| (input.to_owned(), shape.to_vec())).collect();
            Case { name: real.name.to_owned(), path: real.path, shapes }
        })),
        Err(reason) => eprintln!("without the real models: {reason}"),
    }
    Ok(cases)
}

fn measure(path: &Path, shapes: &GivenShapes, library: &Path) -> anyhow::Result<Measured> {
    let runtime = OrtRuntime::new(OrtOptions { library: Some(library.to_owned()), threads: NonZeroUsize::MIN })?;
    let before = memory_bytes("VmRSS:")?;
    let analyse = || -> anyhow::Result<_> {
        let begun = Instant::now();
        let model = Model::decode_bytes(std::fs::read(path)?.into(), &Limits::default())?;
        let subject = Subject::new(model, &runtime, shapes)?;
        Ok((subject, begun.elapsed().as_secs_f64() * 1e3))
    };
    let (subject, mut analysis_ms) = analyse()?;
    let peak_bytes = memory_bytes("VmHWM:")?.saturating_sub(before);
    for _ in 1..REPETITIONS {
        analysis_ms = analysis_ms.min(analyse()?.1);
    }
    let inspection = Inspection::of(&subject, Some(&runtime as &dyn Runtime))?;
    let proof = inspection.proof.context("the proofs were asked for")?;
    Ok(Measured {
        file_bytes: std::fs::metadata(path)?.len(),
        nodes: inspection.nodes,
        groups: inspection.groups.len(),
        frozen: inspection.frozen.len(),
        macs: inspection.macs,
        prunable_macs_share: inspection.prunable_macs_share,
        analysis_ms,
        peak_bytes,
        permutation: proof.permutation,
        mask: proof.mask,
        optimization: proof.optimization,
        bar: proof.bar,
        holds: proof.holds(),
        reason: inspection.frozen_by_reason.into_iter().next().map(|r| r.reason),
    })
}

/// A line of this process's status, e.g. `VmHWM:`, the most memory it ever had.
fn memory_bytes(line: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read this process's memory")?;
    let kib = status.lines().find_map(|l| l.strip_prefix(line)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("the system does not tell {line}"))? * 1024)
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    let headers = ["MODEL", "FILE", "NODES", "GROUPS", "FROZEN", "PRUNABLE", "ANALYSIS", "MEMORY", "OF FILE", "PERMUTATION", "MASK", ""];
    table.load_style(presets::NOTHING).set_header(headers);
    for Row { model, outcome } in rows {
        let m = match outcome {
            Outcome::Measured(measured) => measured,
            Outcome::Failed { error } => {
                table.add_row([model, error]);
                continue;
            }
        };
        table.add_row([
            model.clone(),
            bytes(m.file_bytes),
            m.nodes.to_string(),
            m.groups.to_string(),
            m.frozen.to_string(),
            format!("{:.1} %", m.prunable_macs_share * 100.0),
            format!("{:.0} ms", m.analysis_ms),
            bytes(m.peak_bytes),
            format!("{:.1}x", m.peak_bytes as f64 / m.file_bytes.max(1) as f64),
            format!("{:.1e}", m.permutation),
            format!("{:.1e}", m.mask),
            if m.holds { "holds" } else { "FAILS" }.to_owned(),
        ]);
    }
    table.trim_fmt()
}
