//! The pruning engine: an ONNX model in, a faster one for one device class out.
//!
//! It never opens ONNX Runtime itself: models are run and timed through [`pleach_domain::runtime::Runtime`], lent by the caller.
//! It knows no files, no network, no database and no clock but that of its own stages.
//!
//! The journey: [`analyse`] a model once, time the graphs of an [`AtlasPlan`] on a device, [`prune`] for its budget.

pub mod atlas;
pub mod criteria;
pub mod error;
pub mod levels;
pub mod pipeline;
pub mod progress;
pub mod report;

pub use atlas::{Atlas, AtlasPlan, PlanItem};
pub use criteria::Criterion;
pub use error::PruneError;
pub use pipeline::{Analysis, analyse, prune};
pub use progress::{Progress, Silent, Stage};
pub use report::{Feasible, FrontPoint, FrozenPart, GroupWidth, Outcome, Report, Shortfall, Target, Worth};
