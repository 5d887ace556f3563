//! The project's own commands: `cargo xtask demo`, `test`, `check`, `bench`, `dist`. Each does its own set-up on a fresh machine.
//!
//! A tool, not a part of the product: errors go straight to a person, so they are `anyhow` throughout.

mod bench;
mod check;
mod dashboard;
mod demo;
mod dist;
mod onnxruntime;
mod postgres;
mod process;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints, docs, layering, licences
    Check,
    /// All tests, with ONNX Runtime and PostgreSQL set up for them
    Test {
        /// Passed on to `cargo test`, e.g. a filter
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// The whole journey of a model on this machine: a controller and three kinds of device
    Demo(demo::Options),
    /// Measure a part of Pleach and print a table, or JSON
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Build Debian packages of agent, controller and command line
    Dist(dist::Options),
    /// Build the page that the controller serves; the controller embeds it when it is built next
    Dashboard,
    /// Fetch ONNX Runtime and print where the library is, for `ORT_DYLIB_PATH`
    Onnxruntime,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    match command {
        Command::Check => check::run(&workspace),
        Command::Test { rest } => test::run(&workspace, &rest),
        Command::Demo(options) => demo::run(&workspace, &options),
        Command::Bench(bench) => bench::run(&workspace, &bench),
        Command::Dist(options) => dist::run(&workspace, &options),
        Command::Dashboard => dashboard::build(&workspace),
        Command::Onnxruntime => {
            println!("{}", onnxruntime::ensure()?.display());
            Ok(())
        }
    }
}
