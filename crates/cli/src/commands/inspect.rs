//! `pleach inspect`: reads a model here, without a controller.

use std::io::{ErrorKind, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::thread::available_parallelism;

use anyhow::{Context, bail};
use bytes::Bytes;
use pleach_domain::runtime::Runtime;
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::{Limits, Model};

use crate::args::{Inspect, InspectOutput};
use crate::inspect::{InspectError, Inspection, Subject, html, text};

/// Inspects a model and prints what was found.
pub(super) fn inspect(args: &Inspect) -> anyhow::Result<()> {
    let file = args.model.display().to_string();
    let model = read(&args.model).with_context(|| file.clone())?;
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

fn read(path: &Path) -> anyhow::Result<Model> {
    let limits = Limits::default();
    let size_bytes = std::fs::metadata(path).context("cannot read the model")?.len();
    if size_bytes > limits.max_bytes as u64 {
        bail!("{size_bytes} bytes: expected at most {}", limits.max_bytes);
    }
    let bytes = std::fs::read(path).context("cannot read the model")?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut weights = |location: &str, max_bytes: u64| read_weights(&folder, location, max_bytes);
    Ok(Model::decode_external(bytes.into(), &limits, &mut weights).map_err(InspectError::Model)?)
}

/// Reads a file of weights in the model's folder, wherever symbolic links in its path lead.
fn read_weights(folder: &Path, location: &str, max_bytes: u64) -> std::io::Result<Bytes> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.canonicalize()?;
    let file = folder.join(location).canonicalize()?;
    if !file.starts_with(&folder) {
        return Err(std::io::Error::other("a symbolic link leads out of the model's folder"));
    }
    let size_bytes = std::fs::metadata(&file)?.len();
    if size_bytes > max_bytes {
        return Err(std::io::Error::other(format!("{size_bytes} bytes: expected at most {max_bytes}")));
    }
    std::fs::read(file).map(Bytes::from)
}

/// Prints a result; a reader that has seen enough is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("cannot print"),
        _ => Ok(()),
    }
}
