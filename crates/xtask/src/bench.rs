//! `cargo xtask bench`: what Pleach achieves, measured on this machine: a module for each bench, a table or JSON of each.

mod agent;
mod fleet;
mod graph;
mod prune;
mod trust;

use clap::{Subcommand, ValueEnum};

use crate::workspace::Workspace;

/// What can be measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Memory, size, start, network, latency and recovery of the agent on a device, against the bars
    Agent(agent::Options),
    /// A controller with thousands of connected devices, against the bars
    Fleet(fleet::Options),
    /// Coupling groups of many models: the share that is prunable, time, memory, proofs
    Graph(graph::Options),
    /// Loss at measured speed-ups on the fixtures, against the bars
    Prune(prune::Options),
    /// Sealing, opening and assigning beside the ciphers and hashes under them
    Trust(trust::Options),
}

/// How a bench prints what it measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table for people.
    Text,
    /// The same for programs.
    Json,
}

/// Runs one bench; the result goes to stdout, progress to stderr.
pub(crate) fn run(workspace: &Workspace, bench: &Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Agent(options) => agent::run(workspace, options),
        Bench::Fleet(options) => fleet::run(workspace, options),
        Bench::Graph(options) => graph::run(workspace, options),
        Bench::Prune(options) => prune::run(workspace, options),
        Bench::Trust(options) => trust::run(options),
    }
}
