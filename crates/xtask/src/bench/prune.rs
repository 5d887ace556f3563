//! `cargo xtask bench prune`: what `pleach prune` reaches on the fixtures: what is lost at which measured speed, against the bars.
//!
//! Every variant is made by the program itself, from calibration samples without labels, and judged on the validation halves. Then all
//! variants of a model and the model itself are timed side by side: one thread, one row, interleaved.

mod data;
mod memory;
mod rival;
mod table;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_domain::runtime::{Runtime, TimedModel, Timing};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_prune::{Quality, Report, Stage};
use serde::Serialize;

use super::Output;
use crate::workspace::Workspace;
use crate::{onnxruntime, process};

/// Wall time spent on each model when all are timed side by side.
const TIMING: Duration = Duration::from_secs(3);
/// Share of a speed-up that two clocks of one machine may differ by.
const CLOCKS: f64 = 0.98;
/// Exit code of `pleach prune` when nothing keeps what was asked for.
const MISSED: i32 = 4;

/// Options of the bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these fixtures (may be repeated)
    #[arg(long = "only", visible_alias = "fixture", value_name = "NAME")]
    fixtures: Vec<String>,
    /// Only these speed-ups (may be repeated)
    #[arg(long = "speedup", value_name = "FACTOR")]
    speedups: Vec<f64>,
    /// Prune with onnxsim 0.8.1 as well, which pip installs into the cache folder
    #[arg(long)]
    rival: bool,
    /// How to print
    #[arg(short, long, default_value = "text")]
    output: Output,
}

/// A speed-up asked for, and the most that may be lost there, a figure of quality each.
struct Bar {
    speedup: f64,
    most: &'static [(&'static str, f64)],
}

/// A fixture and its bars.
struct Fixture {
    name: &'static str,
    bars: [Bar; 3],
}

const fn bar(speedup: f64, most: &'static [(&'static str, f64)]) -> Bar {
    Bar { speedup, most }
}

const FIXTURES: [Fixture; 7] = [
    Fixture {
        name: "fm-resnet",
        bars: [bar(1.5, &[("accuracy", 0.002)]), bar(2.0, &[("accuracy", 0.004)]), bar(3.0, &[("accuracy", 0.009)])],
    },
    Fixture {
        name: "fm-vgg",
        bars: [bar(1.5, &[("accuracy", 0.003)]), bar(2.0, &[("accuracy", 0.006)]), bar(3.0, &[("accuracy", 0.008)])],
    },
    Fixture {
        name: "fm-mbv2",
        bars: [bar(1.5, &[("accuracy", 0.004)]), bar(2.0, &[("accuracy", 0.008)]), bar(2.6, &[("accuracy", 0.02)])],
    },
    Fixture {
        name: "fm-yolo",
        bars: [
            bar(1.5, &[("mAP@0.5", 0.003), ("mAP", 0.002)]),
            bar(2.0, &[("mAP@0.5", 0.015), ("mAP", 0.025)]),
            bar(3.0, &[("mAP@0.5", 0.09), ("mAP", 0.14)]),
        ],
    },
    Fixture { name: "conll-bert", bars: [bar(1.5, &[("F1", 0.002)]), bar(2.0, &[("F1", 0.003)]), bar(3.0, &[("F1", 0.005)])] },
    Fixture { name: "spam-bert", bars: [bar(1.5, &[("accuracy", 0.0)]), bar(2.0, &[("accuracy", 0.0)]), bar(3.0, &[("accuracy", 0.002)])] },
    Fixture {
        name: "austen-gpt",
        bars: [bar(1.5, &[("perplexity", 0.005)]), bar(2.0, &[("perplexity", 0.01)]), bar(3.0, &[("perplexity", 0.05)])],
    },
];

/// One variant, or why there is none.
#[derive(Serialize)]
struct Row {
    fixture: String,
    /// Speed-up asked for.
    asked: f64,
    /// Measured by the program itself, by the median.
    claimed: f64,
    /// Measured here, interleaved with the model and all its variants: by the median, the 95th percentile and the fastest call.
    speedup_p50: f64,
    speedup_p95: f64,
    speedup_min: f64,
    /// Median latency as predicted before the variant was made, and as the program measured it then.
    predicted_us: f64,
    measured_us: f64,
    figures: Vec<Figure>,
    accuracy_lost_bound_95: f64,
    /// Whether the speed was reached and every figure is within its bar.
    holds: bool,
    /// Wall time of the whole program, and of its stages.
    seconds: f64,
    stages: BTreeMap<Stage, f64>,
    peak_memory_bytes: u64,
    size_bytes: u64,
    /// What was missed, when the program found no variant.
    missed: Option<String>,
}

impl Row {
    /// |predicted / measured - 1|.
    fn prediction_error(&self) -> f64 {
        (self.predicted_us / self.measured_us - 1.0).abs()
    }
}

/// One figure of quality.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Figure {
    name: &'static str,
    dense: f64,
    pruned: f64,
    /// What was lost; of the perplexity what it rose by.
    lost: f64,
    /// The most that may be lost.
    bar: Option<f64>,
}

/// All of the bench.
#[derive(Serialize)]
struct Bench {
    rows: Vec<Row>,
    rival: Vec<rival::Rival>,
    /// Median over all variants of |predicted / measured - 1|; absent when there is none.
    prediction_error: Option<f64>,
    /// Wall time of a second target, from the cache, over that of the first: the median over fixtures of which two were pruned for.
    second_target_share: Option<f64>,
}

/// Runs the bench.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let library = onnxruntime::ensure()?;
    let runtime = OrtRuntime::new(OrtOptions { library: Some(library.clone()), threads: NonZeroUsize::MIN })?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::run(Command::new(cargo).args(["build", "--release", "--package", "pleach-cli"]).current_dir(&workspace.root))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.root.join("target"), PathBuf::from);
    let work = tempfile::tempdir()?;
    let place = Place { program: target.join("release/pleach"), library, root: workspace.root.clone(), work: work.path().to_owned() };
    let wanted = |f: &&Fixture| options.fixtures.is_empty() || options.fixtures.iter().any(|n| n == f.name);
    if let Some(unknown) = options.fixtures.iter().find(|n| FIXTURES.iter().all(|f| f.name != **n)) {
        bail!("fixture {unknown:?}: expected one of {:?}", FIXTURES.map(|f| f.name));
    }
    let mut bench = Bench { rows: Vec::new(), rival: Vec::new(), prediction_error: None, second_target_share: None };
    let mut shares = Vec::new();
    for fixture in FIXTURES.iter().filter(wanted) {
        let rows = place.fixture(fixture, &options.speedups, &runtime).with_context(|| fixture.name.to_owned())?;
        if let [first, second, ..] = rows.as_slice() {
            shares.push(second.seconds / first.seconds.max(f64::MIN_POSITIVE));
        }
        bench.rows.extend(rows);
        if options.rival {
            bench
                .rival
                .extend(rival::run(&place, fixture.name, &bench.rows, &runtime).with_context(|| format!("{}: onnxsim", fixture.name))?);
        }
    }
    bench.prediction_error = median(bench.rows.iter().filter(|r| r.missed.is_none()).map(Row::prediction_error).collect());
    bench.second_target_share = median(shares);
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&bench)?),
        Output::Text => println!("{}", table::render(&bench)),
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Where things are.
struct Place {
    program: PathBuf,
    library: PathBuf,
    root: PathBuf,
    work: PathBuf,
}

/// A fixture's files.
struct Files {
    model: PathBuf,
    calibration: PathBuf,
    validation: PathBuf,
}

impl Place {
    fn files(&self, fixture: &str) -> anyhow::Result<Files> {
        let fixtures = self.root.join("tests/fixtures");
        let data = match fixture {
            "fm-resnet" | "fm-vgg" | "fm-mbv2" => (fixtures.join("fashion-calibration.npz"), fixtures.join("fashion-validation.npz")),
            "conll-bert" => data::conll(&fixtures.join("training/make_conll.py"))?,
            _ => (fixtures.join(fixture).join("calibration.npz"), fixtures.join(fixture).join("validation.npz")),
        };
        Ok(Files { model: fixtures.join(fixture).join("model.onnx"), calibration: data.0, validation: data.1 })
    }

    fn fixture(&self, fixture: &Fixture, speedups: &[f64], runtime: &OrtRuntime) -> anyhow::Result<Vec<Row>> {
        let files = self.files(fixture.name)?;
        let cache = self.work.join(fixture.name);
        let (mut rows, mut variants) = (Vec::new(), Vec::new());
        for bar in fixture.bars.iter().filter(|b| speedups.is_empty() || speedups.contains(&b.speedup)) {
            eprintln!("{} at {}x", fixture.name, bar.speedup);
            let out = self.work.join(format!("{}-{}.onnx", fixture.name, bar.speedup));
            let (row, made) = self.prune(fixture.name, bar, &files, &cache, &out)?;
            rows.push(row);
            if made {
                variants.push((rows.len() - 1, std::fs::read(&out)?));
            }
        }
        let models: Vec<Vec<u8>> = std::iter::once(std::fs::read(&files.model)?).chain(variants.iter().map(|v| v.1.clone())).collect();
        let timings = side_by_side(&models, &files.validation, runtime)?;
        let dense = timings.first().context("the model was not timed")?;
        for ((at, _), timing) in variants.iter().zip(timings.iter().skip(1)) {
            if let Some(row) = rows.get_mut(*at) {
                (row.speedup_p50, row.speedup_p95) = (dense.p50_us / timing.p50_us, dense.p95_us / timing.p95_us);
                row.speedup_min = dense.min_us / timing.min_us;
                row.holds &= row.speedup_p50.max(row.speedup_min) >= CLOCKS * row.asked;
            }
        }
        Ok(rows)
    }

    fn prune(&self, name: &str, bar: &Bar, files: &Files, cache: &Path, out: &Path) -> anyhow::Result<(Row, bool)> {
        let report = self.work.join("report.json");
        let mut command = Command::new(&self.program);
        command.arg("prune").arg(&files.model).arg("--calibration").arg(&files.calibration).arg("--validation").arg(&files.validation);
        command.arg("--target").arg(format!("speedup={}", bar.speedup)).arg("--out").arg(out).arg("--report").arg(&report);
        command.arg("--cache").arg(cache).arg("--onnxruntime").arg(&self.library);
        let begun = Instant::now();
        let ended = memory::run(&mut command)?;
        let seconds = begun.elapsed().as_secs_f64();
        let made = match ended.code {
            Some(0) => true,
            Some(MISSED) => false,
            _ => bail!("pleach prune failed: {}", ended.stderr.trim()),
        };
        let report: Report = serde_json::from_slice(&std::fs::read(&report)?)?;
        let figures = figures(&report, bar.most);
        let row = Row {
            fixture: name.to_owned(),
            asked: bar.speedup,
            claimed: report.speedup_p50,
            speedup_p50: report.speedup_p50,
            speedup_p95: report.dense.latency_p95_us / report.pruned.latency_p95_us,
            speedup_min: report.speedup_p50,
            predicted_us: report.predicted_latency_p50_us,
            measured_us: report.pruned.latency_p50_us,
            holds: made && figures.iter().all(|f| f.bar.is_none_or(|most| f.lost <= most + 1e-9)),
            figures,
            accuracy_lost_bound_95: report.accuracy_lost_bound_95,
            seconds,
            stages: report.seconds,
            peak_memory_bytes: ended.peak_bytes,
            size_bytes: report.pruned.size_bytes,
            missed: (!made).then(|| ended.stderr.lines().last().unwrap_or_default().to_owned()),
        };
        Ok((row, made))
    }
}

/// The figures that a fixture has bars for.
fn figures(report: &Report, bars: &[(&'static str, f64)]) -> Vec<Figure> {
    let (dense, pruned) = (by_name(&report.dense.quality), by_name(&report.pruned.quality));
    let figure = |&(name, bar): &(&'static str, f64)| {
        let (dense, pruned) = (*dense.get(name)?, *pruned.get(name)?);
        let lost = if name == "perplexity" { pruned - dense } else { dense - pruned };
        Some(Figure { name, dense, pruned, lost, bar: Some(bar) })
    };
    bars.iter().filter_map(figure).collect()
}

fn by_name(quality: &Quality) -> BTreeMap<&'static str, f64> {
    match *quality {
        Quality::Accuracy { accuracy, .. } => BTreeMap::from([("accuracy", accuracy)]),
        Quality::EntityF1 { accuracy, f1, .. } => BTreeMap::from([("accuracy", accuracy), ("F1", f1)]),
        Quality::MeanPrecision { map50, map50_95, .. } => BTreeMap::from([("mAP@0.5", map50), ("mAP", map50_95)]),
        Quality::Perplexity { perplexity, accuracy } => BTreeMap::from([("perplexity", perplexity), ("accuracy", accuracy)]),
        Quality::Agreement { agreement } => BTreeMap::from([("agreement", agreement)]),
    }
}

/// Times models on the first validation row, interleaved.
fn side_by_side(models: &[Vec<u8>], validation: &Path, runtime: &OrtRuntime) -> anyhow::Result<Vec<Timing>> {
    let data = Dataset::parse_npz(&std::fs::read(validation)?, &DatasetLimits::default())?;
    let inputs: Vec<_> = data.inputs().iter().map(|(n, t)| (n.clone(), t.slice_rows(0, 1))).collect();
    let models: Vec<TimedModel> = models.iter().map(|m| TimedModel { model: m.clone(), inputs: inputs.clone() }).collect();
    runtime.time(&models, TIMING).map_err(anyhow::Error::from_boxed)
}
