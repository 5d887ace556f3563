//! An analysis as bytes, so that a later run, of another process, need not make it again.
//!
//! Layout: the mark, the length of a JSON head (64-bit little endian), the head, then single-precision numbers (little endian): the
//! dense answers, and of every layer its targets. Gram matrices are not kept: nothing asks for them once channels are ranked and
//! groups are probed. The folded graph and its groups are not kept either: they follow from the model, and are found again.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use pleach_domain::dataset::Dataset;
use pleach_domain::runtime::Runtime;
use pleach_onnx::{Limits, Model};
use serde::{Deserialize, Serialize};

use crate::analysis::{Analysis, RankLosses, Ready, ready, rewriter};
use crate::atlas::fingerprint;
use crate::criteria::Criterion;
use crate::error::PruneError;
use crate::linear::Rows;
use crate::network::Network;
use crate::positions::Positions;
use crate::progress::{Progress, Stage};
use crate::statistics::{LayerStatistics, Statistics};
use crate::task::{Emphasis, Task};

/// First bytes; the digit is the version of the layout and of what the numbers mean.
const MARK: &[u8; 16] = b"pleach-analysis3";

#[derive(Serialize, Deserialize)]
struct Head {
    /// Of the model that was analysed.
    fingerprint: u64,
    criterion: Criterion,
    task: Task,
    /// Bytes of the network's model, which follow.
    model: usize,
    fit_rows: usize,
    rows: usize,
    emphasis: Emphasis,
    answers: usize,
    layers: Vec<LayerHead>,
    orders: Vec<Vec<usize>>,
    losses: Vec<Vec<(usize, f64)>>,
    rank_losses: BTreeMap<usize, RankLosses>,
    flat_losses: BTreeMap<usize, f64>,
}

#[derive(Serialize, Deserialize)]
struct LayerHead {
    positions: Positions,
    outputs: usize,
}

impl Analysis {
    /// The analysis as bytes, for [`Analysis::from_bytes`].
    ///
    /// # Errors
    /// [`PruneError::Cache`] when a number cannot be written as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PruneError> {
        let Statistics { fit_rows, layers, rows, emphasis, answers } = &self.statistics;
        let layer = |l: &LayerStatistics| LayerHead { positions: l.positions.clone(), outputs: l.targets.cols };
        // As it was looked at: a change of basis depends on the machine that found it.
        let model = self.network.model.encode();
        let head = Head {
            model: model.len(),
            fingerprint: fingerprint(&self.original),
            criterion: self.criterion,
            task: self.task.clone(),
            fit_rows: *fit_rows,
            rows: *rows,
            emphasis: emphasis.clone(),
            answers: answers.rows,
            layers: layers.iter().map(layer).collect(),
            orders: self.orders.clone(),
            losses: self.losses.clone(),
            rank_losses: self.rank_losses.clone(),
            flat_losses: self.flat_losses.clone(),
        };
        let head = serde_json::to_vec(&head).map_err(|e| PruneError::Cache(e.to_string()))?;
        let mut bytes = MARK.to_vec();
        bytes.extend((head.len() as u64).to_le_bytes());
        bytes.extend(head);
        bytes.extend(model);
        let numbers = std::iter::once(answers).chain(layers.iter().map(|l| &l.targets));
        bytes.extend(numbers.flat_map(|r| &r.data).flat_map(|x| x.to_le_bytes()));
        Ok(bytes)
    }

    /// Reads an analysis of `model`; `calibration` must be the data it was made from.
    ///
    /// # Errors
    /// [`PruneError::Cache`] for bytes of another model, layout or length; otherwise as [`crate::analyse`] for the model itself.
    pub fn from_bytes(
        bytes: &[u8],
        model: &[u8],
        calibration: &Dataset,
        runtime: &dyn Runtime,
        progress: &dyn Progress,
    ) -> Result<Self, PruneError> {
        let refuse = |reason: String| PruneError::Cache(reason);
        let rest = bytes.strip_prefix(MARK).ok_or_else(|| refuse("bytes are no analysis of this version".to_owned()))?;
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| refuse("the bytes end early".to_owned()))?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (head, numbers) = rest.split_at_checked(length).ok_or_else(|| refuse("the bytes end early".to_owned()))?;
        let head: Head = serde_json::from_slice(head).map_err(|e| refuse(e.to_string()))?;
        if head.fingerprint != fingerprint(model) {
            return Err(refuse("analysis of another model".to_owned()));
        }
        if head.rows != calibration.rows() {
            return Err(refuse(format!("analysis of {} rows: expected {}", head.rows, calibration.rows())));
        }
        let start = Instant::now();
        let Ready { network, original_cost, .. } = ready(model, calibration, runtime, progress)?;
        let (own, numbers) = numbers.split_at_checked(head.model).ok_or_else(|| refuse("the bytes end early".to_owned()))?;
        let own = Model::decode(own, &Limits::default()).map_err(|e| refuse(e.to_string()))?;
        let same = |name: &str| own.constant_dims(name) == network.model.constant_dims(name);
        if own.nodes().map(|n| n.proto).ne(network.model.nodes().map(|n| n.proto)) || !network.model.initializers().all(same) {
            return Err(refuse("the analysis does not fit the model".to_owned()));
        }
        let network = Network::new(own, network.shapes, network.coupling);
        let inputs = calibration.inputs().iter().map(|(n, t)| (n.as_str(), t)).collect();
        let rewriter = rewriter(&network, &inputs, runtime);
        let seconds = start.elapsed().as_secs_f64();
        let mut numbers = Numbers(numbers);
        let answers = numbers.rows(head.answers, head.task.width())?;
        let mut layers = Vec::with_capacity(head.layers.len());
        for LayerHead { positions, outputs } in head.layers {
            let targets = numbers.rows(positions.samples(), outputs)?;
            layers.push(LayerStatistics { positions, targets, mean: Vec::new(), grams: Vec::new() });
        }
        let fits = layers.len() == network.layers.len()
            && network.layers.iter().zip(&layers).all(|(l, s)| s.targets.cols == l.outputs && s.positions.fits(head.fit_rows, l.positions))
            && head.answers <= head.rows
            && head.losses.len() == network.coupling.groups.len()
            && head.orders.len() == network.coupling.groups.len()
            && network.coupling.groups.iter().zip(&head.orders).all(|(g, order)| is_permutation(order, g.size));
        if !fits || !numbers.0.is_empty() {
            return Err(refuse("the analysis does not fit the model".to_owned()));
        }
        let statistics = Statistics { fit_rows: head.fit_rows, layers, rows: head.rows, emphasis: head.emphasis, answers };
        Ok(Self {
            network,
            task: head.task,
            rewriter,
            statistics,
            criterion: head.criterion,
            orders: head.orders,
            losses: head.losses,
            rank_losses: head.rank_losses,
            flat_losses: head.flat_losses,
            original: model.to_vec(),
            original_cost,
            seconds: BTreeMap::from([(Stage::Load, seconds)]),
            validated: Mutex::new(None),
        })
    }
}

/// Numbers still to be read.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn rows(&mut self, rows: usize, cols: usize) -> Result<Rows, PruneError> {
        let length = rows.checked_mul(cols).and_then(|n| n.checked_mul(4));
        let split = length.and_then(|l| self.0.split_at_checked(l));
        let (own, rest) = split.ok_or_else(|| PruneError::Cache("the bytes end early".to_owned()))?;
        self.0 = rest;
        let (words, _) = own.as_chunks::<4>();
        Ok(Rows::new(rows, cols, words.iter().map(|w| f32::from_le_bytes(*w)).collect()))
    }
}

fn is_permutation(order: &[usize], size: usize) -> bool {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    sorted.into_iter().eq(0..size)
}
