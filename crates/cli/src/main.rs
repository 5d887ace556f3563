//! The command `pleach`.

use std::process::ExitCode;

use clap::Parser;
use pleach_cli::args::Cli;
use pleach_cli::prune::Missed;
use pleach_cli::{ClientError, commands};
use pleach_prune::PruneError;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match commands::run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(code(&error))
        }
    }
}

fn code(error: &anyhow::Error) -> u8 {
    let of = |e: &(dyn std::error::Error + 'static)| {
        let unreachable = matches!(e.downcast_ref(), Some(ClientError::Unreachable { .. })).then_some(3);
        let missed = e.downcast_ref::<Missed>().map(|_| 4);
        let cancelled = matches!(e.downcast_ref(), Some(PruneError::Cancelled(_))).then_some(130);
        unreachable.or(missed).or(cancelled)
    };
    error.chain().find_map(of).unwrap_or(1)
}
