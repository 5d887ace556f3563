//! `pleach prune`: its words.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use clap::{ArgGroup, Args, ValueEnum};
use pleach_domain::policy::Schedule;
use pleach_prune::{Criterion, Goal, TaskKind};

const EXAMPLES: &str = "\
Examples:
  pleach prune model.onnx --calibration data.npz --validation held-out.npz --target speedup=2 -o small.onnx
  pleach prune model.onnx --calibration data.npz --target p95=4ms --min-accuracy 0.90 -o small.onnx --report report.json
  pleach prune model.onnx --calibration data.npz --max-size 5MB --max-memory 64MB -o small.onnx --html report.html
  pleach prune model.onnx --calibration data.npz --target p50=12ms --threads 4 --batch 8 -o small.onnx --output json

Calibration and validation files are .npz: arrays named after the model's inputs, with their exact types and shapes, one row for each
sample; and, where they are known, `labels` ([rows] or [rows, positions], below zero where there is none) or `boxes` and `index`.
Labels in the calibration file are not used. What is found out about a model is kept in the cache folder, so that another
target costs a fraction of the first.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 4 no variant keeps what was asked for (the nearest is told), 130 cancelled.";

/// `pleach prune`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
#[command(group(ArgGroup::new("budget").args(["target", "max_size", "max_memory"]).required(true).multiple(true)))]
pub struct Prune {
    /// The trained model, .onnx
    pub model: PathBuf,
    /// Samples that the model is pruned by, .npz; labels are not needed
    #[arg(long, value_name = "FILE")]
    pub calibration: PathBuf,
    /// Samples that dense and pruned are judged on, .npz, with labels where there are any; else calibration samples that nothing is fitted to
    #[arg(long, value_name = "FILE")]
    pub validation: Option<PathBuf>,
    /// Latency of one call, measured on this machine: p50=4ms, p95=900us, or speedup=2 against the model as it is (by the median)
    #[arg(long, value_name = "GOAL", value_parser = parse_goal)]
    pub target: Option<Goal>,
    /// Largest file, e.g. 5MB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_size: Option<u64>,
    /// Most memory of one call, model and activations, e.g. 64MB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_memory: Option<u64>,
    /// Lowest accuracy on the validation samples, 0 to 1; of tags F1, of detections mAP@0.5, without labels the agreement with the model as it is
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub min_accuracy: Option<f64>,
    /// Lowest recall of every class, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub min_class_recall: Option<f64>,
    /// Set single weights smaller than this to zero at the end: the file is smaller once compressed, and no faster
    #[arg(long, value_name = "WEIGHT", value_parser = parse_threshold)]
    pub zero_below: Option<f32>,
    /// How channels are ranked
    #[arg(long, value_name = "NAME", default_value = "obs", value_parser = named::<Criterion>(&["l1", "l2", "eigen", "obs", "random"]))]
    pub criterion: Criterion,
    /// In how many steps channels go
    #[arg(long, value_name = "NAME", default_value = "hard", value_parser = named::<Schedule>(&["hard"]))]
    pub schedule: Schedule,
    /// What the model is for, when it should not be found out
    #[arg(long, value_name = "KIND", value_parser = named::<TaskKind>(&TaskKind::ALL.map(TaskKind::name)))]
    pub task: Option<TaskKind>,
    /// Where the pruned model goes
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: PathBuf,
    /// Where the report goes, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Where the report for people goes, one page with a picture
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Threads that one call uses
    #[arg(long, value_name = "N", default_value = "1")]
    pub threads: NonZeroUsize,
    /// Rows in one call
    #[arg(long, value_name = "N", default_value = "1")]
    pub batch: NonZeroUsize,
    /// Folder that keeps what is found out about models [default: prune in $PLEACH_CACHE, else pleach/prune in the user's cache folder]
    #[arg(long, value_name = "FOLDER")]
    pub cache: Option<PathBuf>,
    /// Neither read nor write the cache
    #[arg(long, conflicts_with = "cache")]
    pub no_cache: bool,
    /// ONNX Runtime's library, version 1.28 or newer
    #[arg(long, env = "ORT_DYLIB_PATH", hide_env_values = true, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
    /// How the result is printed
    #[arg(long, default_value = "text")]
    pub output: PruneOutput,
}

/// How the result of pruning is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PruneOutput {
    /// For people.
    Text,
    /// The report.
    Json,
}

/// Parses the name that a type has in reports.
pub(super) fn named<T: serde::de::DeserializeOwned + Clone + Send + Sync + 'static>(
    names: &[&'static str],
) -> impl clap::builder::TypedValueParser<Value = T> + use<T> {
    PossibleValuesParser::new(names.to_vec()).try_map(|name| serde_json::from_value(serde_json::Value::String(name)))
}

fn parse_goal(text: &str) -> Result<Goal, String> {
    let expected = || format!("{text:?}: expected p50=TIME, p95=TIME or speedup=FACTOR, e.g. p95=4ms or speedup=2");
    let (name, value) = text.split_once('=').ok_or_else(expected)?;
    let positive = |x: f64| x.is_finite() && x > 0.0;
    let goal = match name {
        "speedup" => value.trim_end_matches('x').parse().ok().filter(|f: &f64| positive(*f) && *f >= 1.0).map(Goal::Speedup),
        "p50" => parse_us(value).map(Goal::P50Us),
        "p95" => parse_us(value).map(Goal::P95Us),
        _ => None,
    };
    goal.ok_or_else(expected)
}

/// A time in microseconds.
fn parse_us(text: &str) -> Option<f64> {
    let (number, scale) =
        [("us", 1.0), ("ms", 1e3), ("s", 1e6)].into_iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    number.trim().parse().ok().map(|x: f64| x * scale).filter(|us| us.is_finite() && *us > 0.0)
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let units =
        [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("B", 1), ("", 1)];
    let found = units.into_iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)));
    let bytes = found.and_then(|(number, scale)| Some(number.trim().parse::<f64>().ok()? * f64::from(scale)));
    let whole = bytes.filter(|b| *b >= 1.0 && *b < 1e15).map(|b| b as u64);
    whole.ok_or_else(|| format!("{text:?}: expected a number of bytes, e.g. 5MB or 800KiB"))
}

fn parse_share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| (0.0..=1.0).contains(x)).ok_or_else(|| format!("{text:?}: expected 0 to 1, e.g. 0.9"))
}

fn parse_threshold(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|x: &f32| x.is_finite() && *x > 0.0).ok_or_else(|| format!("{text:?}: expected a number above 0, e.g. 0.001"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_sizes_and_shares_parse_or_say_what_is_expected() {
        assert_eq!(parse_goal("speedup=2"), Ok(Goal::Speedup(2.0)));
        assert_eq!(parse_goal("speedup=1.5x"), Ok(Goal::Speedup(1.5)));
        assert_eq!(parse_goal("p95=4ms"), Ok(Goal::P95Us(4_000.0)));
        assert_eq!(parse_goal("p50=900us"), Ok(Goal::P50Us(900.0)));
        for bad in ["", "2", "speedup=0.5", "speedup=nan", "p95=4", "p95=-4ms", "p99=4ms", "p50=infs"] {
            assert!(parse_goal(bad).is_err_and(|e| e.contains("expected p50=TIME")), "{bad}");
        }
        assert_eq!(parse_bytes("5MB"), Ok(5_000_000));
        assert_eq!(parse_bytes("1.5KiB"), Ok(1_536));
        assert_eq!(parse_bytes("77"), Ok(77));
        for bad in ["", "0", "MB", "-1MB", "5XB", "1e99"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert!(parse_share("1.1").is_err() && parse_share("NaN").is_err());
        assert_eq!(parse_threshold("0.001"), Ok(0.001));
        assert!(["0", "-1", "inf", "x"].iter().all(|bad| parse_threshold(bad).is_err()));
    }
}
