//! The pruning engine: an ONNX model in, a faster one for one device class out.
//!
//! It never opens ONNX Runtime itself: models are run and timed through [`pleach_domain::runtime::Runtime`], lent by the caller.
//! It knows no files, no network, no database and no clock but that of its own stages.
//!
//! The journey: [`analyse`] a model once, time the graphs of an [`AtlasPlan`] on a device, [`prune`] for its budget.

mod activation;
pub mod analysis;
pub mod atlas;
mod cache;
pub mod coupling;
pub mod criteria;
mod dead;
pub mod error;
mod evaluate;
mod flat;
pub mod fold;
mod head_rank;
pub mod levels;
mod linear;
mod lowrank;
mod magnitude;
mod network;
pub mod pipeline;
mod positions;
pub mod progress;
pub mod proof;
mod quantized;
mod reconstruct;
pub mod report;
mod run;
pub mod simplify;
mod solve;
mod statistics;
pub mod surgery;
pub mod task;
mod verify;
mod warnings;

pub use analysis::{Analysis, Options, analyse};
pub use atlas::{Atlas, AtlasPlan, PlanItem};
pub use criteria::Criterion;
pub use error::PruneError;
pub use evaluate::quality;
pub use lowrank::Split;
pub use pipeline::prune;
pub use progress::{Progress, Silent, Stage};
pub use report::{Feasible, FrontPoint, FrozenPart, Goal, GroupWidth, LayerRank, Outcome, Quality, Report, Shortfall, Target, Worth};
pub use task::{Task, TaskKind};
