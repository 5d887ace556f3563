//! `pleach prune`: runs the engine off the async thread, and stops it when the user says so.

use std::sync::Arc;

use anyhow::Context;

use crate::args::Prune;
use crate::prune::{self, Watch};

/// Prunes a model; the first interrupt asks it to stop, the second is not waited for.
pub(super) async fn prune(args: Prune) -> anyhow::Result<()> {
    let watch = Arc::new(Watch::new());
    let own = Arc::clone(&watch);
    let mut work = tokio::task::spawn_blocking(move || prune::prune(&args, &own));
    tokio::select! {
        done = &mut work => return done.context("the engine panicked")?,
        signal = tokio::signal::ctrl_c() => signal.context("cannot listen for interrupts")?,
    }
    watch.stop();
    watch.note("stopping at the next opportunity; interrupt again to stop at once");
    tokio::select! {
        done = &mut work => done.context("the engine panicked")?,
        _ = tokio::signal::ctrl_c() => std::process::exit(130),
    }
}
