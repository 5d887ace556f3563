//! What the end-to-end tests, the tests of the store, and the benches share.

pub mod models;
pub mod postgres;
