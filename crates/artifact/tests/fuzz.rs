//! Drives the fuzz targets with mutants of genuine bundles and payloads, the same ones in every run.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "fuzz/targets.rs"]
mod targets;

use std::io::Read;

use pleach_artifact::manifest::MANIFEST_FORMAT;
use pleach_artifact::{BundleManifest, KnownAnswer, NamedTensor, PayloadReader, Rung, RungSource, Suite, seal, sha256};
use pleach_domain::random::SplitMix;
use pleach_domain::runtime::TensorSpec;
use pleach_domain::{ElementType, Tensor};

/// Alters the bytes in one to three places.
fn mutate(random: &mut SplitMix, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() + 1);
        let span = random.below(16).min(bytes.len() - at);
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..at + span)),
            2 => drop(bytes.splice(at..at + span, [0xFF; 8])),
            3 => {
                let copy = bytes[at..at + span].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.truncate(at.max(bytes.len() / 2)),
        }
    }
}

fn manifest(onnx: &[u8]) -> BundleManifest {
    let spec = |name: &str| TensorSpec { name: name.into(), element_type: ElementType::Fp32, shape: vec![None, Some(3)] };
    let tensor = |name: &str| NamedTensor { name: name.into(), tensor: Tensor::fp32(vec![1, 3], vec![1.0, -2.5, 0.1]).unwrap() };
    let rung = Rung {
        name: "full".into(),
        offset_bytes: 0,
        length_bytes: onnx.len() as u64,
        sha256: sha256(onnx),
        macs: 1_000,
        known_answer: KnownAnswer { outputs: vec![tensor("y")], rtol: 1e-3, atol: 1e-5 },
    };
    BundleManifest {
        format: MANIFEST_FORMAT,
        model: "resnet".parse().unwrap(),
        version: 3,
        class: "camera".parse().unwrap(),
        task: "classification".into(),
        labels: vec!["shoe".into()],
        inputs: vec![spec("x")],
        outputs: vec![spec("y")],
        request_batch: 1,
        known_answer_inputs: vec![tensor("x")],
        rungs: vec![rung],
        created_at_ms: 1_700_000_000_000,
    }
}

#[test]
fn mutants_of_bundles_and_payloads_give_an_error_or_what_holds_its_promises() {
    let onnx = [5; 300];
    let manifest = manifest(&onnx);
    let mut payload = Vec::new();
    PayloadReader::new(&manifest, &[RungSource { onnx: &onnx }]).unwrap().read_to_end(&mut payload).unwrap();
    let mut bundle = Vec::new();
    seal(&mut &*payload, payload.len() as u64, Suite::ChaCha20Poly1305, &mut bundle).unwrap();
    let json = manifest.encode().unwrap();
    assert!(targets::bundle(&bundle) && targets::payload(&payload) && !targets::payload(&json));
    let mut random = SplitMix(11);
    let (mut headers, mut payloads) = (0, 0);
    for _ in 0..8_000 {
        let mut bytes = [&bundle, &payload, &json][random.below(3)].clone();
        mutate(&mut random, &mut bytes);
        headers += usize::from(targets::bundle(&bytes));
        payloads += usize::from(targets::payload(&bytes));
    }
    assert!(headers > 500 && payloads < 2_000, "{headers} headers, {payloads} payloads");
}
