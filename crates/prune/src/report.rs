//! What a pruning run says about its result; stored as JSON beside the variant.

use std::collections::BTreeMap;

use pleach_domain::metrics::{ClassFigures, Lost};
use serde::{Deserialize, Serialize};

use crate::criteria::Criterion;
use crate::lowrank::Split;
use crate::progress::Stage;
use crate::task::TaskKind;

/// What a variant must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Target {
    /// Largest mean latency of one batch on the device, in microseconds, as predicted by the atlas.
    pub latency_us: f64,
    /// Largest size of the encoded model in bytes.
    pub max_size_bytes: Option<u64>,
    /// Most bytes that one call holds: the model and the activations alive at once.
    pub max_memory_bytes: Option<u64>,
    /// Lowest [`Quality::score`] on the validation data, 0..=1.
    pub min_accuracy: Option<f64>,
    /// Lowest share of each class's validation rows (or objects) that must be found, 0..=1.
    pub min_class_recall: Option<f64>,
    /// Rows in one inference call; the atlas must be of the same batch.
    pub batch: usize,
    /// Single weights below this become zero at the end: smaller once compressed, not faster. None when absent.
    pub zero_below: Option<f32>,
    /// What the variant must reach when it is timed on this machine. The budget is moved until it does; `latency_us` is then
    /// only where the search begins.
    pub goal: Option<Goal>,
}

impl Default for Target {
    /// Nothing is asked for, one row a call.
    fn default() -> Self {
        Self {
            latency_us: f64::MAX,
            max_size_bytes: None,
            max_memory_bytes: None,
            min_accuracy: None,
            min_class_recall: None,
            batch: 1,
            zero_below: None,
            goal: None,
        }
    }
}

/// A latency that counts as measured, end to end, on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Median of one call, in microseconds, at most.
    P50Us(f64),
    /// 95th percentile of one call, in microseconds, at most.
    P95Us(f64),
    /// Median of the model as uploaded over that of the variant, at least.
    Speedup(f64),
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
    /// Even the narrowest network that was tried holds too much memory.
    Memory {
        /// The budget in bytes.
        budget_bytes: u64,
        /// The least reached, in bytes.
        reached_bytes: u64,
    },
    /// The most accurate network inside the budgets is below the floor.
    Accuracy {
        /// The floor, 0..=1.
        floor: f64,
        /// The accuracy reached, 0..=1.
        reached: f64,
    },
    /// Of some class too few rows are found.
    ClassRecall {
        /// The class.
        class: usize,
        /// The floor, 0..=1.
        floor: f64,
        /// The share found, 0..=1.
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
            Self::Memory { budget_bytes, reached_bytes } => {
                write!(f, "memory budget {budget_bytes} bytes: the leanest variant holds {reached_bytes} bytes")
            }
            Self::Accuracy { floor, reached } => {
                write!(f, "accuracy floor {floor:.4}: the best variant inside the budgets reaches {reached:.4}")
            }
            Self::ClassRecall { class, floor, reached } => {
                write!(f, "recall floor {floor:.4} of class {class}: the best variant inside the budgets reaches {reached:.4}")
            }
        }
    }
}

/// A point that can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feasible {
    /// Predicted mean latency of one batch on the device, in microseconds.
    pub latency_us: f64,
    /// [`Quality::score`] on the validation data, 0..=1.
    pub accuracy: f64,
    /// Size of the encoded model in bytes.
    pub size_bytes: u64,
}

/// How good a model's answers are, by the figure that its task is judged by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "metric", rename_all = "snake_case")]
pub enum Quality {
    /// Classes of rows, or of positions when their tags are no entities.
    Accuracy {
        /// Share answered as labelled, 0..=1.
        accuracy: f64,
        /// Mean recall over the classes, 0..=1.
        recall: f64,
        /// Mean F1 over the classes, 0..=1.
        f1: f64,
        /// F1 over all rows together, 0..=1.
        f1_micro: f64,
        /// Each class.
        classes: Vec<ClassFigures>,
    },
    /// Entities in tagged text.
    EntityF1 {
        /// Share of the positions tagged as labelled, 0..=1.
        accuracy: f64,
        /// Share of the entities found, 0..=1.
        recall: f64,
        /// Share of the entities found that are right, 0..=1.
        precision: f64,
        /// Harmonic mean of the two, 0..=1.
        f1: f64,
        /// Mean F1 of the tags, 0..=1.
        f1_macro: f64,
        /// Each tag.
        classes: Vec<ClassFigures>,
    },
    /// Objects in images.
    MeanPrecision {
        /// Mean average precision at an overlap of 0.5, 0..=1.
        map50: f64,
        /// Mean over overlaps from 0.5 to 0.95, 0..=1.
        map50_95: f64,
        /// Share of the objects that some detection found at an overlap of 0.5, mean over the classes, 0..=1.
        recall: f64,
        /// That share of each class.
        class_recall: Vec<Option<f64>>,
    },
    /// Next tokens.
    Perplexity {
        /// Exponential of the mean surprise in nats; 1 is perfect.
        perplexity: f64,
        /// Share of the next tokens that were the likeliest, 0..=1.
        accuracy: f64,
    },
    /// No labels: how often the answer is the dense model's.
    Agreement {
        /// Share of rows, positions or detections, or of the values' variance, 0..=1.
        agreement: f64,
    },
}

impl Quality {
    /// The figure that floors are set in, 0..=1, better when higher: accuracy, F1, mAP@0.5 or agreement; of next tokens the accuracy.
    pub fn score(&self) -> f64 {
        match *self {
            Self::Accuracy { accuracy, .. } | Self::Perplexity { accuracy, .. } => accuracy,
            Self::EntityF1 { f1, .. } => f1,
            Self::MeanPrecision { map50, .. } => map50,
            Self::Agreement { agreement } => agreement,
        }
    }

    /// The figure that what is lost is stated in: the score, but of next tokens the perplexity.
    pub fn headline(&self) -> f64 {
        match *self {
            Self::Perplexity { perplexity, .. } => perplexity,
            Self::Accuracy { .. } | Self::EntityF1 { .. } | Self::MeanPrecision { .. } | Self::Agreement { .. } => self.score(),
        }
    }

    /// The name of [`Quality::headline`], for people.
    pub const fn headline_name(&self) -> &'static str {
        match self {
            Self::Accuracy { .. } => "accuracy",
            Self::EntityF1 { .. } => "entity F1",
            Self::MeanPrecision { .. } => "mAP@0.5",
            Self::Perplexity { .. } => "perplexity",
            Self::Agreement { .. } => "agreement",
        }
    }

    /// Share of each class's rows, entities or objects that is found; empty where there are no classes.
    pub fn class_recalls(&self) -> Vec<Option<f64>> {
        match self {
            Self::Accuracy { classes, .. } | Self::EntityF1 { classes, .. } => classes.iter().map(|c| c.recall).collect(),
            Self::MeanPrecision { class_recall, .. } => class_recall.clone(),
            Self::Perplexity { .. } | Self::Agreement { .. } => Vec::new(),
        }
    }
}

/// A model's worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worth {
    /// On the validation data.
    #[serde(flatten)]
    pub quality: Quality,
    /// Median latency of one batch on the machine that pruned (not the device), in microseconds.
    pub latency_p50_us: f64,
    /// 95th percentile of the same.
    pub latency_p95_us: f64,
    /// Multiply-accumulates of one row.
    pub macs: u64,
    /// Weights and biases.
    pub parameters: u64,
    /// Size of the encoded model in bytes.
    pub size_bytes: u64,
    /// Most bytes that one call holds: the encoded model and the activations alive at once.
    pub memory_bytes: u64,
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

/// Rank of a layer that became two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRank {
    /// The tensor it makes.
    pub layer: String,
    /// Channels between the two.
    pub rank: usize,
    /// What the two are.
    pub split: Split,
    /// Outputs of the dense layer.
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
    /// What the model is for.
    pub task: TaskKind,
    /// Rows in one inference call.
    pub batch: usize,
    /// The dense model as uploaded.
    pub dense: Worth,
    /// The variant.
    pub pruned: Worth,
    /// Median latency of dense over that of the variant, on the machine that pruned, interleaved.
    pub speedup_p50: f64,
    /// What was lost of the headline figure against dense (of the perplexity: what it rose by), paired.
    pub lost: Lost,
    /// What is lost on as many fresh rows stays below this: [`Lost::bound`].
    pub accuracy_lost_bound_95: f64,
    /// Share of the answers to the validation data that are the dense model's, 0..=1.
    pub agreement: f64,
    /// Divergence from the dense model on held calibration rows: of classes Kullback-Leibler, in nats.
    pub divergence: f64,
    /// Predicted latency of one batch of the variant on the device, in microseconds.
    pub predicted_latency_p50_us: f64,
    /// Predicted latency of one batch of the dense, folded model on the device, in microseconds.
    pub predicted_dense_latency_us: f64,
    /// Width of each group, in graph order.
    pub widths: Vec<GroupWidth>,
    /// Layers that became two of low rank.
    #[serde(default)]
    pub factored: Vec<LayerRank>,
    /// What is never narrowed, and why.
    pub frozen: Vec<FrozenPart>,
    /// What other budgets would give: ascending in latency.
    pub front: Vec<FrontPoint>,
    /// Wall seconds of each stage.
    pub seconds: BTreeMap<Stage, f64>,
    /// What the user should know of the data and the figures, in words.
    pub warnings: Vec<String>,
}
