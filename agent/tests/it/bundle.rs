//! Sealed bundles of the trained fixture, with a known-answer test that the model really passes, or not.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use pleach_artifact::{BundleManifest, ContentKey, KnownAnswer, NamedTensor, PayloadReader, Rung, RungSource, Suite, seal, sha256};
use pleach_domain::id::ModelName;
use pleach_domain::runtime::{Optimization, Runtime, TensorSpec};
use pleach_domain::{ClassId, DeviceId, Digest, Tensor};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_trust::{BundleEntry, BundleFacts, Sha256Digest};

use crate::lab::device_id;

/// What the controller would have in its rows.
pub struct Bundle {
    pub digest: Digest,
    pub bytes: Bytes,
    pub leaves: Vec<u8>,
    pub content_key: ContentKey,
    pub entry: BundleEntry,
    pub device: DeviceId,
    pub model: ModelName,
    pub class: ClassId,
}

/// What the model takes, gives, and answers to one input.
pub struct Fixture {
    pub onnx: Vec<u8>,
    pub input: NamedTensor,
    pub output: NamedTensor,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

pub fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/fm-resnet/model.onnx");
        let onnx = std::fs::read(path).unwrap();
        let options = OrtOptions { library: None, threads: NonZeroUsize::MIN };
        let runtime = OrtRuntime::new(options).expect("ORT_DYLIB_PATH must name ONNX Runtime's library");
        let mut model = runtime.load(&onnx, Optimization::All).unwrap();
        let (inputs, outputs) = (model.inputs().to_vec(), model.outputs().to_vec());
        let shape: Vec<usize> = inputs[0].shape.iter().map(|axis| axis.unwrap_or(1)).collect();
        let count = shape.iter().product();
        let input = Tensor::fp32(shape, (0..count).map(|i| (i % 17) as f32 / 17.0).collect()).unwrap();
        let answer = model.run(&[(&inputs[0].name, &input)]).unwrap().remove(0);
        Fixture {
            input: NamedTensor { name: inputs[0].name.clone(), tensor: input },
            output: NamedTensor { name: outputs[0].name.clone(), tensor: answer },
            onnx,
            inputs,
            outputs,
        }
    })
}

/// A bundle of model version `version`; equal calls give different bundles, as sealing does.
pub fn bundle(version: u64) -> Bundle {
    seal_with(version, fixture().output.clone())
}

/// A bundle whose model does not give the answer that the manifest says.
pub fn wrong_answer(version: u64) -> Bundle {
    let right = &fixture().output;
    let values = right.tensor.as_fp32().unwrap().iter().map(|v| v + 1.0).collect();
    let wrong = Tensor::fp32(right.tensor.shape().to_vec(), values).unwrap();
    seal_with(version, NamedTensor { name: right.name.clone(), tensor: wrong })
}

fn seal_with(version: u64, answer: NamedTensor) -> Bundle {
    let fixture = fixture();
    let (model, class): (ModelName, ClassId) = ("fm-resnet".parse().unwrap(), "c".parse().unwrap());
    let rung = Rung {
        name: "full".into(),
        offset_bytes: 0,
        length_bytes: fixture.onnx.len() as u64,
        sha256: sha256(&fixture.onnx),
        macs: 1,
        known_answer: KnownAnswer { outputs: vec![answer], rtol: 1e-3, atol: 1e-3 },
    };
    let manifest = BundleManifest {
        format: pleach_artifact::manifest::MANIFEST_FORMAT,
        model: model.clone(),
        version,
        class: class.clone(),
        task: "classification".into(),
        labels: Vec::new(),
        inputs: fixture.inputs.clone(),
        outputs: fixture.outputs.clone(),
        request_batch: 1,
        known_answer_inputs: vec![fixture.input.clone()],
        rungs: vec![rung],
        created_at_ms: 0,
    };
    let mut payload = PayloadReader::new(&manifest, &[RungSource { onnx: &fixture.onnx }]).unwrap();
    let length = payload.length();
    let mut bytes = Vec::new();
    let sealed = seal(&mut payload, length, Suite::Aes256Gcm, &mut bytes).unwrap();
    let facts = BundleFacts {
        tree_root: Sha256Digest::new(*sealed.tree_root.as_bytes()),
        chunk_count: sealed.leaves.count() as u32,
        model: model.to_string(),
        model_version: version,
        class: class.to_string(),
        suite: sealed.suite.name().into(),
        security_floor: 1,
    };
    Bundle {
        digest: sealed.digest,
        bytes: bytes.into(),
        leaves: sealed.leaves.encode(),
        content_key: sealed.content_key,
        entry: BundleEntry { digest: Sha256Digest::new(*sealed.digest.as_bytes()), length: sealed.length, facts },
        device: device_id(),
        model,
        class,
    }
}
