//! The store: every row that Pleach keeps, in SQLite or PostgreSQL from one SQL text, and the blobs beside them.
//!
//! SQL stands here and nowhere else. A module holds one aggregate as free functions over a [`Session`]; whatever belongs together is
//! done in one session and committed once. It makes no decision and reads no clock: times come in as `at_ms`. State changes are
//! compare-and-set and answer whether they took place. Lists are bounded by [`Page`].

pub mod api_tokens;
pub mod assignments;
pub mod atlases;
pub mod audit;
pub mod blobs;
pub mod budgets;
pub mod bundles;
pub mod classes;
mod column;
pub mod decisions;
pub mod desired;
pub mod devices;
mod dialect;
pub mod error;
pub mod fleet;
pub mod jobs;
pub mod measurements;
mod migrate;
pub mod models;
pub mod policies;
pub mod rollouts;
pub mod rollups;
mod session;
pub mod tokens;
pub mod trust;
pub mod variants;
pub mod windows;

pub use blobs::Blobs;
pub use error::StoreError;
pub use session::{Page, Session, Store};
