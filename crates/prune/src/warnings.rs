//! What a user should know of data and figures that are not wrong, but weak.

use pleach_domain::Element;
use pleach_domain::dataset::Dataset;

use crate::analysis::Analysis;
use crate::evaluate::Judgement;
use crate::report::{Quality, Target};

/// Rows below which statistics and figures are too coarse to trust.
const FEW_ROWS: usize = 200;
/// Channels that are named in one warning.
const NAMED: usize = 8;

/// The warnings of a run, in words.
pub(crate) fn warnings(
    analysis: &Analysis,
    calibration: &Dataset,
    validation: &Dataset,
    target: &Target,
    judgement: &Judgement,
) -> Vec<String> {
    let mut all = Vec::new();
    for (role, data, effect) in [
        ("calibration", calibration, "statistics from so few are coarse, so more accuracy may be lost than need be"),
        ("validation", validation, "the bounds of what is lost are wide"),
    ] {
        if data.rows() < FEW_ROWS {
            all.push(format!("{role} data have {} rows, fewer than {FEW_ROWS}: {effect}", data.rows()));
        }
    }
    all.extend(constant_channels(calibration));
    if let Some(threshold) = target.zero_below {
        all.push(format!("weights below {threshold} are zero: the file is smaller once compressed, and no faster"));
    }
    let Judgement { pruned, lost, .. } = judgement;
    if matches!(pruned.quality, Quality::Agreement { .. }) {
        all.push("validation data have no labels: what is lost is judged by agreement with the dense model".to_owned());
    }
    let lower = pruned.quality.score() - (lost.upper - lost.estimate).max(0.0);
    if let Some(floor) = target.min_accuracy.filter(|&floor| lower < floor && !matches!(pruned.quality, Quality::Perplexity { .. })) {
        let name = pruned.quality.headline_name();
        all.push(format!(
            "{name} {:.4} keeps the floor {floor:.4}, but by less than chance moves it: it may be {lower:.4}",
            pruned.quality.score()
        ));
    }
    let rows = analysis.statistics.rows;
    if rows < calibration.rows() {
        all.push(format!("the model takes a fixed number of rows: the last {} calibration rows are not used", calibration.rows() - rows));
    }
    all
}

/// Channels of float inputs that never change: the engine learns nothing about them.
fn constant_channels(data: &Dataset) -> Vec<String> {
    let mut all = Vec::new();
    for (name, tensor) in data.inputs() {
        let (Element::Fp32(values), [_, channels, inner @ ..]) = (tensor.data(), tensor.shape()) else { continue };
        let inner: usize = inner.iter().product::<usize>().max(1);
        let constant = |channel: &usize| {
            let mut found =
                values.chunks(channels * inner).flat_map(|row| row.get(channel * inner..(channel + 1) * inner).unwrap_or_default());
            let first = found.next();
            found.all(|v| Some(v) == first)
        };
        let still: Vec<usize> = (0..*channels).filter(constant).collect();
        if data.rows() > 1 && !still.is_empty() {
            let shown: Vec<String> = still.iter().take(NAMED).map(ToString::to_string).collect();
            let more = if still.len() > NAMED { ", ..." } else { "" };
            all.push(format!(
                "input {name:?}: {} of {channels} channels never change in the calibration data ({}{more})",
                still.len(),
                shown.join(", ")
            ));
        }
    }
    all
}
