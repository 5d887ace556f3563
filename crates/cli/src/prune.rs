//! `pleach prune`: from a trained model and samples to a faster model for this machine, without a controller.
//!
//! The engine is the one of the controller's jobs. Here are only files, the cache, this machine's clock and what the user sees.

pub mod cache;
mod files;
mod machine;
mod page;
mod summary;
mod watch;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_onnx::OnnxError;
use pleach_prune::{Analysis, Atlas, AtlasPlan, Goal, Options, Outcome, PruneError, Report, Shortfall, Target, analyse};

use crate::args::{Prune, PruneOutput};
use crate::model_file;
use cache::Cache;
use machine::Machine;

pub use watch::Watch;

/// Largest model or dataset file.
const MAX_FILE_BYTES: u64 = 4 << 30;
/// Wall time spent on each graph of the atlas.
const ATLAS_BUDGET: Duration = Duration::from_millis(60);

/// What holds where no latency is asked for: not slower than the model as it is, by more than timing can tell.
const NO_SLOWER: Goal = Goal::Speedup(0.97);

/// Nothing keeps what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("no variant keeps the {shortfall}; the nearest has {:.2} ms (median, {:.2} times as fast as the model as it is), {} {:.4} and {} bytes",
    report.pruned.latency_p50_us / 1e3, report.speedup_p50, report.pruned.quality.headline_name(), report.pruned.quality.headline(), report.pruned.size_bytes)]
pub struct Missed {
    /// What is missed.
    pub shortfall: Shortfall,
    /// The nearest variant.
    pub report: Box<Report>,
}

/// Prunes a model as the arguments say; the result goes to files and stdout.
///
/// # Errors
/// [`Missed`] when nothing keeps what was asked for, [`PruneError::Cancelled`] when `watch` says stop, whatever else kept it from being done.
/// No file is left half-written.
pub fn prune(args: &Prune, watch: &Watch) -> anyhow::Result<()> {
    let begun = Instant::now();
    for file in [Some(&args.out), args.report.as_ref(), args.html.as_ref()].into_iter().flatten() {
        files::check_writable(file)?;
    }
    let model = files::read(&args.model, MAX_FILE_BYTES).context("cannot read the model")?;
    // Weights that lie beside the model become part of it; what is no model the engine refuses in its own words.
    let model = match model_file::decode(&args.model, model.clone().into()) {
        Ok(whole) if whole.is_changed() => whole.encode(),
        Err(error @ OnnxError::ExternalData { .. }) => return Err(error).context("cannot read the model"),
        Ok(_) | Err(_) => model,
    };
    let (calibration, calibration_digest) = dataset(&args.calibration).context("calibration data")?;
    let machine = Machine::new(args.onnxruntime.clone(), args.threads)?;
    let cache = Cache::open(args.no_cache, args.cache.as_deref());
    let work = Work { args, watch, cache: &cache, machine: &machine, model: &model, calibration: &calibration };
    let key = Key { model: digest(&model), calibration: calibration_digest };
    let analysis = work.analysis(&key)?;
    let atlas = work.atlas(&key, &analysis)?;
    let validation = match &args.validation {
        Some(file) => dataset(file).context("validation data")?.0,
        None => held(&analysis, &calibration)?,
    };
    let target = Target {
        max_size_bytes: args.max_size,
        max_memory_bytes: args.max_memory,
        min_accuracy: args.min_accuracy,
        min_class_recall: args.min_class_recall,
        batch: args.batch.get(),
        zero_below: args.zero_below,
        goal: Some(args.target.unwrap_or(NO_SLOWER)),
        ..Target::default()
    };
    let mut outcome = pleach_prune::prune(&analysis, &atlas, &target, &calibration, &validation, &machine, watch)?;
    let (Outcome::Made { report, .. } | Outcome::Rejected { report, .. }) = &mut outcome;
    for (&stage, seconds) in analysis.seconds() {
        *report.seconds.entry(stage).or_default() += seconds;
    }
    watch.finish();
    work.deliver(outcome, begun.elapsed())
}

/// What an analysis is of.
struct Key {
    model: String,
    calibration: String,
}

struct Work<'a> {
    args: &'a Prune,
    watch: &'a Watch,
    cache: &'a Cache,
    machine: &'a Machine,
    model: &'a [u8],
    calibration: &'a Dataset,
}

impl Work<'_> {
    /// The analysis of the model: from the cache, else made and put there.
    fn analysis(&self, key: &Key) -> anyhow::Result<Analysis> {
        let Self { args, watch, cache, machine, model, calibration } = self;
        let task = args.task.map_or("found", |t| t.name());
        let name = cache::name(&["analysis", &key.model, &key.calibration, args.criterion.name(), task]);
        if let Some(bytes) = cache.get(&name) {
            match Analysis::from_bytes(&bytes, model, calibration, *machine, *watch) {
                Err(error @ PruneError::Cancelled(_)) => return Err(error.into()),
                Err(error) => watch.note(&format!("what is cached of the model cannot be used ({error}); finding it out again")),
                Ok(analysis) => return Ok(analysis),
            }
        }
        let options = Options { criterion: args.criterion, task: args.task };
        let analysis = analyse(model, calibration, options, *machine, *watch)?;
        match analysis.to_bytes() {
            Ok(bytes) => cache.put(&name, &bytes, watch),
            Err(error) => watch.note(&format!("what was found out about the model is not kept: {error}")),
        }
        Ok(analysis)
    }

    /// The atlas of this machine for the model: from the cache, else measured and put there.
    fn atlas(&self, key: &Key, analysis: &Analysis) -> anyhow::Result<Atlas> {
        let Self { args, watch, cache, machine, .. } = self;
        let (threads, batch) = (args.threads.to_string(), args.batch.to_string());
        let step = machine.width_step(cache, watch)?;
        let parts = [&*machine.identity(), &threads, &batch, &step.to_string(), args.criterion.name()];
        let name = cache::name(&[&["atlas", &key.model, &key.calibration], &parts[..]].concat());
        let plan = AtlasPlan::for_model(analysis, args.batch.get(), step)?;
        let fits = |atlas: &Atlas| atlas.dense_latency_us(analysis).is_ok();
        if let Some(atlas) = cache.get(&name).and_then(|b| serde_json::from_slice(&b).ok()).filter(fits) {
            return Ok(atlas);
        }
        watch.note(&format!("timing {} graphs on this machine", plan.items.len()));
        let atlas = Atlas::measure(*machine, &plan, ATLAS_BUDGET)?;
        cache.put(&name, &serde_json::to_vec(&atlas)?, watch);
        Ok(atlas)
    }

    fn deliver(&self, outcome: Outcome, took: Duration) -> anyhow::Result<()> {
        let Self { args, .. } = self;
        let (model, report, shortfall) = match outcome {
            Outcome::Made { model, report } => (Some(model), report, None),
            Outcome::Rejected { shortfall, report, .. } => (None, report, Some(shortfall)),
        };
        let json = serde_json::to_string_pretty(&report)? + "\n";
        if let Some(file) = &args.report {
            files::write(file, json.as_bytes())?;
        }
        if let Some(file) = &args.html {
            files::write(file, page::render(&file_name(&args.model), &report, shortfall.as_ref()).as_bytes())?;
        }
        // The model last: where it is, everything else is.
        if let Some(model) = &model {
            files::write(&args.out, model)?;
        }
        match args.output {
            PruneOutput::Json => files::print(&json)?,
            PruneOutput::Text => files::print(&summary::render(&report, took))?,
        }
        match shortfall {
            Some(shortfall) => Err(Missed { shortfall, report }.into()),
            None => Ok(()),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The SHA-256 of a file.
fn digest(bytes: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn dataset(path: &Path) -> anyhow::Result<(Dataset, String)> {
    let bytes = files::read(path, MAX_FILE_BYTES)?;
    let data = Dataset::parse_npz(&bytes, &DatasetLimits::default()).with_context(|| path.display().to_string())?;
    Ok((data, digest(&bytes)))
}

/// The calibration rows that nothing is fitted to.
fn held(analysis: &Analysis, calibration: &Dataset) -> anyhow::Result<Dataset> {
    calibration.slice_rows(analysis.held_from(), calibration.rows()).context("the calibration data have no rows to judge by")
}
