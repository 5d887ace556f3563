//! What the owner of a model wants on devices.

use serde::{Deserialize, Serialize};

use crate::error::DomainError;
use crate::id::{ClassId, ModelName, PolicyName};
use crate::profile::check;
pub use crate::rollout::RolloutRules;

/// The rule that ranks the channels of a group before some of them go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Criterion {
    /// Sum of absolute producer weights, Σ|w| (Li et al. 2017, "Pruning Filters for Efficient ConvNets").
    L1,
    /// Euclidean norm of producer weights, √Σw².
    L2,
    /// Ridge leverage of the consumers' columns in the eigenbasis of their Gram matrix, times their energy (Alaoui and Mahoney 2015,
    /// "Fast Randomized Kernel Ridge Regression"); of a layer's rank, the spectrum of its responses (Zhang et al. 2015).
    Eigen,
    /// Second-order cost tr(Wₚᵀ ((H⁻¹)ₚₚ)⁻¹ Wₚ) of removing the consumers' columns p and re-solving the rest
    /// (Hassibi and Stork 1993, "Optimal Brain Surgeon"; in groups as in Kurtic et al. 2023, "ZipLM"), summed over
    /// all consumers, each normalised by the energy of its output.
    #[default]
    Obs,
    /// Chance, by a fixed seed: a control that the others must beat.
    Random,
}

impl Criterion {
    /// The name in policies and budgets.
    pub const fn name(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::Eigen => "eigen",
            Self::Obs => "obs",
            Self::Random => "random",
        }
    }
}

/// In how many steps channels go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// One shot.
    #[default]
    Hard,
}

/// When the adaptation loop may change a class's budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptationRules {
    /// Length of a telemetry window in seconds.
    pub window_seconds: u32,
    /// Windows of the running bundle that a decision needs, over all devices of the class.
    pub min_windows: u32,
    /// Requests that a decision needs, over those windows.
    pub min_requests: u64,
    /// Seconds that a decision rests after a bundle is proven.
    pub cooldown_seconds: u32,
    /// Share of the SLO that a new budget aims at, e.g. 0.85.
    pub target_share: f64,
    /// Share of the SLO that the first budget of a class aims at, before there is evidence from devices.
    pub first_target_share: f64,
    /// Headroom: the observed p95 is below this share of the SLO.
    pub headroom_share: f64,
}

impl Default for AdaptationRules {
    fn default() -> Self {
        Self {
            window_seconds: 60,
            min_windows: 5,
            min_requests: 200,
            cooldown_seconds: 600,
            target_share: 0.85,
            first_target_share: 0.7,
            headroom_share: 0.75,
        }
    }
}

/// A policy, as its owner writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Name of the policy.
    pub name: PolicyName,
    /// The model it is for; always its newest version.
    pub model: ModelName,
    /// Classes it is for; empty: every class.
    #[serde(default)]
    pub classes: Vec<ClassId>,
    /// Latency service level objective: 95th percentile of a request on the device, in microseconds.
    pub slo_p95_us: u64,
    /// Samples in one request: the shape that latency is planned for.
    #[serde(default = "one")]
    pub request_batch: u32,
    /// Lowest accuracy on the validation set, 0 to 1.
    pub accuracy_floor: f64,
    /// Lowest recall of every class on the validation set, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_recall_floor: Option<f64>,
    /// Largest model file in bytes.
    #[serde(default)]
    pub max_size_bytes: Option<u64>,
    /// How channels are ranked.
    #[serde(default)]
    pub criterion: Criterion,
    /// In how many steps channels go.
    #[serde(default)]
    pub schedule: Schedule,
    /// How a bundle proves itself and spreads.
    #[serde(default)]
    pub rollout: RolloutRules,
    /// When the loop may change the budget.
    #[serde(default)]
    pub adaptation: AdaptationRules,
}

fn one() -> u32 {
    1
}

impl Policy {
    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// [`DomainError::Field`] names the first field that is not.
    pub fn validate(&self) -> Result<(), DomainError> {
        let share = |x: f64| x.is_finite() && x > 0.0 && x <= 1.0;
        let a = &self.adaptation;
        check((1..=60_000_000).contains(&self.slo_p95_us), "slo_p95_us", self.slo_p95_us.to_string(), "1 to 60000000 microseconds")?;
        check((1..=1024).contains(&self.request_batch), "request_batch", self.request_batch.to_string(), "1 to 1024")?;
        check((0.0..=1.0).contains(&self.accuracy_floor), "accuracy_floor", self.accuracy_floor.to_string(), "0 to 1")?;
        if let Some(floor) = self.class_recall_floor {
            check((0.0..=1.0).contains(&floor), "class_recall_floor", floor.to_string(), "0 to 1")?;
        }
        check(self.max_size_bytes != Some(0), "max_size_bytes", "0".into(), "at least 1")?;
        check((1..=86_400).contains(&a.window_seconds), "adaptation.window_seconds", a.window_seconds.to_string(), "1 to 86400")?;
        check(a.min_windows >= 1, "adaptation.min_windows", "0".into(), "at least 1")?;
        for (field, x) in
            [("target_share", a.target_share), ("first_target_share", a.first_target_share), ("headroom_share", a.headroom_share)]
        {
            check(share(x), &format!("adaptation.{field}"), x.to_string(), "above 0, at most 1")?;
        }
        check(
            a.headroom_share < a.target_share,
            "adaptation.headroom_share",
            a.headroom_share.to_string(),
            "less than adaptation.target_share",
        )?;
        self.rollout.validate()
    }

    /// Whether the policy is for this class.
    pub fn covers(&self, class: &ClassId) -> bool {
        self.classes.is_empty() || self.classes.contains(class)
    }
}
