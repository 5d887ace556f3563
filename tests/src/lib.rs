//! What the end-to-end tests, and the tests of the store, share.

pub mod postgres;
