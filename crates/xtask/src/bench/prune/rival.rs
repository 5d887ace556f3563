//! onnxsim, which prunes ONNX files without training as well: its own speeds, and what it loses there.

use std::process::Command;

use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_inference::OrtRuntime;
use pleach_onnx::{Limits, Model};
use pleach_prune::quality;
use serde::Serialize;

use super::{Place, Row, data, side_by_side};
use crate::process;

const PACKAGES: [&str; 3] = ["onnxsim==0.8.1", "onnxruntime==1.28.0", "numpy==2.4.6"];
const SCRIPT: &str = include_str!("rival.py");
/// Shares of the channels that go.
const SPARSITIES: [f64; 3] = [0.25, 0.5, 0.75];

/// One model that onnxsim made.
#[derive(Serialize)]
pub(super) struct Rival {
    pub(super) fixture: String,
    pub(super) sparsity: f64,
    pub(super) speedup_p50: f64,
    /// The figure that both are judged by.
    pub(super) figure: &'static str,
    pub(super) dense: f64,
    pub(super) pruned: f64,
    /// Whether one of our variants is at least as fast and loses less.
    pub(super) beaten: bool,
}

impl Rival {
    /// What was lost of the figure; of the perplexity what it rose by.
    pub(super) fn lost(&self) -> f64 {
        if self.figure == "perplexity" { self.pruned - self.dense } else { self.dense - self.pruned }
    }

    fn beaten_by(&self, row: &Row) -> bool {
        let lost = row.figures.first().map_or(f64::INFINITY, |f| f.lost);
        row.fixture == self.fixture && row.missed.is_none() && row.speedup_p50 >= self.speedup_p50 && lost < self.lost()
    }
}

/// Prunes a fixture at a few sparsities; what onnxsim cannot do is told on stderr and left out.
/// `ours` are the variants to compare with.
pub(super) fn run(place: &Place, fixture: &str, ours: &[Row], runtime: &OrtRuntime) -> anyhow::Result<Vec<Rival>> {
    let files = place.files(fixture)?;
    let python = data::python("onnxsim", &PACKAGES)?;
    let script = place.work.join("rival.py");
    std::fs::write(&script, SCRIPT)?;
    let mut models = vec![std::fs::read(&files.model)?];
    let mut made = Vec::new();
    for sparsity in SPARSITIES {
        let out = place.work.join(format!("rival-{fixture}-{sparsity}.onnx"));
        let mut command = Command::new(&python);
        command.arg(&script).arg(&files.model).arg(&files.calibration).arg(sparsity.to_string()).arg(&out);
        match process::output(&mut command) {
            Ok(_) => {
                models.push(std::fs::read(&out)?);
                made.push(sparsity);
            }
            Err(error) => eprintln!("onnxsim cannot prune {fixture} at {sparsity}: {error:#}"),
        }
    }
    let timings = side_by_side(&models, &files.validation, runtime)?;
    let validation = Dataset::parse_npz(&std::fs::read(&files.validation)?, &DatasetLimits::default())?;
    let judged =
        |model: &Vec<u8>| -> anyhow::Result<_> { Ok(quality(&Model::decode(model, &Limits::default())?, &validation, None, runtime)?) };
    let mut all = Vec::new();
    if let ([dense, pruned @ ..], [before, after @ ..]) = (models.as_slice(), timings.as_slice()) {
        let dense = judged(dense)?;
        for ((sparsity, model), timing) in made.into_iter().zip(pruned).zip(after) {
            let mut rival = Rival {
                fixture: fixture.to_owned(),
                sparsity,
                speedup_p50: before.p50_us / timing.p50_us,
                figure: dense.headline_name(),
                dense: dense.headline(),
                pruned: judged(model)?.headline(),
                beaten: false,
            };
            rival.beaten = ours.iter().any(|row| rival.beaten_by(row));
            all.push(rival);
        }
    }
    Ok(all)
}
