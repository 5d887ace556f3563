//! Everything that needs more than one crate, in one binary: a module for each stage of the journey.

mod tidy;
