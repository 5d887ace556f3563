//! What a pruning run says about its result; stored as JSON beside the variant.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::criteria::Criterion;
use crate::progress::Stage;

/// What a variant must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Largest mean latency of one batch on the device, in microseconds, as predicted by the atlas.
    pub latency_us: f64,
    /// Largest size of the encoded model in bytes.
    pub max_size_bytes: Option<u64>,
    /// Lowest accuracy on the validation data, 0..=1.
    pub min_accuracy: Option<f64>,
    /// Rows in one inference call; the atlas must be of the same batch.
    pub batch: usize,
}

/// What came of a pruning run.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A variant that meets its target.
    Made {
        /// The encoded model.
        model: Vec<u8>,
        /// What it is worth.
        report: Box<Report>,
    },
    /// No variant meets the target; nothing is delivered.
    Rejected {
        /// What was missed, and by how much.
        shortfall: Shortfall,
        /// The nearest point that can be reached.
        nearest: Feasible,
        /// The report of the nearest point.
        report: Box<Report>,
    },
}

/// Which floor or budget no variant keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "missed", rename_all = "lowercase")]
pub enum Shortfall {
    /// Even the narrowest network is too slow.
    Latency {
        /// The budget, in microseconds.
        budget_us: f64,
        /// The fastest predicted, in microseconds.
        fastest_us: f64,
    },
    /// Even the narrowest network is too large.
    Size {
        /// The budget in bytes.
        budget_bytes: u64,
        /// The smallest possible, in bytes.
        smallest_bytes: u64,
    },
    /// The most accurate network inside the budgets is below the floor.
    Accuracy {
        /// The floor, 0..=1.
        floor: f64,
        /// The accuracy reached, 0..=1.
        reached: f64,
    },
}

impl std::fmt::Display for Shortfall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Latency { budget_us, fastest_us } => {
                write!(f, "latency budget {budget_us:.0} us: the fastest variant needs {fastest_us:.0} us")
            }
            Self::Size { budget_bytes, smallest_bytes } => {
                write!(f, "size budget {budget_bytes} bytes: the smallest variant has {smallest_bytes} bytes")
            }
            Self::Accuracy { floor, reached } => {
                write!(f, "accuracy floor {floor:.4}: the best variant inside the budgets reaches {reached:.4}")
            }
        }
    }
}

/// A point that can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feasible {
    /// Predicted mean latency of one batch on the device, in microseconds.
    pub latency_us: f64,
    /// Accuracy on the validation data, 0..=1.
    pub accuracy: f64,
    /// Size of the encoded model in bytes.
    pub size_bytes: u64,
}

/// A model's worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worth {
    /// Share of validation rows classified as labelled, 0..=1.
    pub accuracy: f64,
    /// Mean recall over the classes, 0..=1.
    pub macro_recall: f64,
    /// Mean F1 over the classes, 0..=1.
    pub macro_f1: f64,
    /// Mean latency of one batch on the machine that pruned (not the device), in microseconds.
    pub local_latency_us: f64,
    /// Multiply-accumulates of one row.
    pub macs: u64,
    /// Weights and biases.
    pub parameters: u64,
    /// Size of the encoded model in bytes.
    pub size_bytes: u64,
}

/// Width of one coupling group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupWidth {
    /// Name of the group: the tensor that first carries it.
    pub group: String,
    /// Channels kept.
    pub kept: usize,
    /// Channels of the dense model.
    pub of: usize,
}

/// A part of the graph that is never narrowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenPart {
    /// Name of the tensor.
    pub name: String,
    /// Why, in words for people.
    pub reason: String,
}

/// An expected point of the latency and divergence front.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontPoint {
    /// Predicted mean latency of one batch on the device, in microseconds.
    pub latency_us: f64,
    /// Expected divergence from the dense model: Kullback-Leibler of the output distributions, in nats.
    pub divergence: f64,
}

/// What a pruning run made, against the dense model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Rule by which channels were ranked.
    pub criterion: Criterion,
    /// Rows in one inference call.
    pub batch: usize,
    /// The dense model as uploaded.
    pub dense: Worth,
    /// The variant.
    pub pruned: Worth,
    /// Upper 95 % bound of the accuracy lost against dense (paired), 0..=1; negative when it surely gained.
    pub accuracy_lost_upper: f64,
    /// Share of validation rows on which both give the same class, 0..=1.
    pub agreement: f64,
    /// Kullback-Leibler divergence of the outputs on held calibration rows, in nats.
    pub divergence: f64,
    /// Predicted mean latency of one batch of the variant on the device, in microseconds.
    pub predicted_latency_us: f64,
    /// Predicted mean latency of one batch of the dense, folded model on the device, in microseconds.
    pub predicted_dense_latency_us: f64,
    /// Width of each group, in graph order.
    pub widths: Vec<GroupWidth>,
    /// What is never narrowed, and why.
    pub frozen: Vec<FrozenPart>,
    /// What other budgets would give: ascending in latency.
    pub front: Vec<FrontPoint>,
    /// Wall seconds of each stage.
    pub seconds: BTreeMap<Stage, f64>,
}
