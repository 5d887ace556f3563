//! The command `pleach`.

use std::process::ExitCode;

use clap::Parser;
use pleach_cli::args::Cli;
use pleach_cli::{ClientError, commands};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match commands::run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let unreachable = error.chain().any(|e| matches!(e.downcast_ref(), Some(ClientError::Unreachable { .. })));
            ExitCode::from(if unreachable { 3 } else { 1 })
        }
    }
}
