//! Criteria: which channels of a group go first.

use serde::{Deserialize, Serialize};

/// The rule that ranks the channels of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Criterion {
    /// Sum of absolute producer weights, Σ|w| (Li et al. 2017, "Pruning Filters for Efficient ConvNets").
    L1,
    /// Euclidean norm of producer weights, √Σw².
    L2,
    /// Second-order cost tr(Wₚᵀ ((H⁻¹)ₚₚ)⁻¹ Wₚ) of removing the consumers' columns p and re-solving the rest
    /// (Hassibi and Stork 1993, "Optimal Brain Surgeon"; in groups as in Kurtic et al. 2023, "ZipLM"), summed over
    /// all consumers, each normalised by the energy of its output.
    #[default]
    Obs,
}
