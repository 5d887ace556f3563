//! `pleach model`: uploads with a progress bar on stderr.

use std::path::Path;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use pleach_domain::Digest;
use pleach_domain::id::ModelName;
use pleach_proto::rest::NewModel;
use pleach_prune::TaskKind;

use crate::client::Client;

/// Uploads the three files and registers the next version of the model.
pub(super) async fn push(
    client: &Client,
    name: ModelName,
    task: TaskKind,
    onnx: &Path,
    calibration: &Path,
    validation: &Path,
) -> anyhow::Result<()> {
    let model = NewModel {
        name: name.to_string(),
        task: task.name().to_owned(),
        onnx: upload(client, onnx).await?,
        calibration: upload(client, calibration).await?,
        validation: upload(client, validation).await?,
    };
    let view = client.create_model(&model).await?;
    println!("model {} version {}: {} parameters, {} MACs", view.name, view.version, view.parameters, view.macs);
    Ok(())
}

async fn upload(client: &Client, file: &Path) -> anyhow::Result<Digest> {
    let length = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    let style = ProgressStyle::with_template("{msg:24} {wide_bar} {bytes:>10} of {total_bytes:10} {eta:>4}")?;
    let bar = ProgressBar::new(length).with_style(style);
    bar.set_message(file.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let sent = bar.clone();
    let blob = client.upload(file, move |bytes| sent.set_position(bytes)).await?;
    bar.finish();
    Ok(blob.digest)
}
