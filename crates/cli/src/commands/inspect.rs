//! `pleach inspect`: reads a model here, without a controller.

use std::io::{ErrorKind, Write};
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use anyhow::{Context, bail};
use pleach_domain::runtime::Runtime;
use pleach_inference::{OrtOptions, OrtRuntime};

use crate::args::{Inspect, InspectOutput};
use crate::inspect::{Inspection, Subject, html, text};
use crate::model_file;

/// Inspects a model and prints what was found.
pub(super) fn inspect(args: &Inspect) -> anyhow::Result<()> {
    let file = args.model.display().to_string();
    let model = model_file::read(&args.model).with_context(|| file.clone())?;
    let threads = available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let runtime = OrtRuntime::new(OrtOptions { library: args.onnxruntime.clone(), threads })?;
    let subject = Subject::new(model, &runtime, &args.shapes.iter().cloned().collect()).with_context(|| file.clone())?;
    let inspection = Inspection::of(&subject, args.prove.then_some(&runtime as &dyn Runtime)).with_context(|| file.clone())?;
    let name = args.model.file_name().unwrap_or(args.model.as_os_str()).to_string_lossy();
    print(&match args.output {
        InspectOutput::Text => text::render(&name, &inspection),
        InspectOutput::Json => serde_json::to_string_pretty(&inspection)?,
        InspectOutput::Html => html::render(&name, &subject, &inspection),
    })?;
    match &inspection.proof {
        Some(proof) if !proof.holds() => bail!("{file}: a proof does not hold, so this model must not be pruned"),
        Some(_) | None => Ok(()),
    }
}

/// Prints a result; a reader that has seen enough is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("cannot print"),
        _ => Ok(()),
    }
}
