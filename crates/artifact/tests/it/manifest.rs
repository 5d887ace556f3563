//! Payloads: manifest and rungs, in and out, and what is refused.

use pleach_artifact::manifest::{MANIFEST_FORMAT, MAX_MANIFEST_BYTES};
use pleach_artifact::{ArtifactError, BundleManifest, KnownAnswer, NamedTensor, Payload, PayloadReader, Rung, RungSource, Suite, sha256};
use pleach_domain::runtime::TensorSpec;
use pleach_domain::{ElementType, Tensor};
use std::io::Read;

use crate::bundle::{opened, payload, sealed};

fn spec(name: &str, shape: Vec<Option<usize>>) -> TensorSpec {
    TensorSpec { name: name.into(), element_type: ElementType::Fp32, shape }
}

fn rung(name: &str, offset_bytes: u64, onnx: &[u8]) -> Rung {
    let outputs = vec![NamedTensor { name: "y".into(), tensor: Tensor::fp32(vec![1, 2], vec![0.25, f32::MIN_POSITIVE]).unwrap() }];
    Rung {
        name: name.into(),
        offset_bytes,
        length_bytes: onnx.len() as u64,
        sha256: sha256(onnx),
        macs: 1_000,
        known_answer: KnownAnswer { outputs, rtol: 1e-3, atol: 1e-5 },
    }
}

fn ladder() -> (BundleManifest, Vec<Vec<u8>>) {
    let files = vec![payload(1000), payload(70_000)];
    let manifest = BundleManifest {
        format: MANIFEST_FORMAT,
        model: "resnet".parse().unwrap(),
        version: 3,
        class: "camera".parse().unwrap(),
        task: "classification".into(),
        labels: vec!["shoe".into(), "bag".into()],
        inputs: vec![spec("x", vec![None, Some(3)])],
        outputs: vec![spec("y", vec![None, Some(2)])],
        request_batch: 1,
        known_answer_inputs: vec![NamedTensor { name: "x".into(), tensor: Tensor::fp32(vec![1, 3], vec![1.0, -2.5, 0.1]).unwrap() }],
        rungs: vec![rung("slim", 0, &files[0]), rung("full", 1000, &files[1])],
        created_at_ms: 1_700_000_000_000,
    };
    (manifest, files)
}

fn sources(files: &[Vec<u8>]) -> Vec<RungSource<'_>> {
    files.iter().map(|onnx| RungSource { onnx }).collect()
}

fn encoded() -> Vec<u8> {
    let (manifest, files) = ladder();
    let mut bytes = Vec::new();
    let mut reader = PayloadReader::new(&manifest, &sources(&files)).unwrap();
    let length = reader.length();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, length);
    bytes
}

#[test]
fn a_ladder_comes_out_of_its_sealed_bundle_as_it_went_in() {
    let (manifest, files) = ladder();
    let (sealed, bytes) = sealed(&encoded(), Suite::Aes256Gcm);
    let plain = opened(&bytes, &sealed.digest, &sealed.content_key).unwrap();
    let parsed = Payload::parse(&plain).unwrap();
    assert_eq!(parsed.manifest(), &manifest);
    for (rung, file) in parsed.manifest().rungs.iter().zip(&files) {
        assert_eq!(parsed.rung(rung), &file[..]);
    }
}

#[test]
fn truncated_or_longer_payloads_are_refused() {
    let bytes = encoded();
    for end in (0..bytes.len()).step_by(97).chain([0, 1, 3, 4, 5, bytes.len() - 1]) {
        assert!(Payload::parse(&bytes[..end]).is_err(), "cut at {end}");
    }
    assert!(Payload::parse(&[&bytes[..], b"x"].concat()).is_err());
    assert!(Payload::parse(&[0xff; 64]).is_err());
}

#[test]
fn an_altered_rung_is_refused() {
    let mut bytes = encoded();
    *bytes.last_mut().unwrap() ^= 1;
    assert!(matches!(Payload::parse(&bytes), Err(ArtifactError::RungDigest { rung, .. }) if rung == "full"));
}

#[test]
fn a_reader_refuses_files_that_are_not_the_manifests() {
    let (manifest, mut files) = ladder();
    assert!(PayloadReader::new(&manifest, &sources(&files[..1])).is_err());
    files[0][0] ^= 1;
    assert!(matches!(PayloadReader::new(&manifest, &sources(&files)), Err(ArtifactError::RungDigest { .. })));
    files[0].pop();
    assert!(matches!(PayloadReader::new(&manifest, &sources(&files)), Err(ArtifactError::Manifest { .. })));
}

#[test]
fn manifests_out_of_range_are_refused_by_field() {
    type Change = fn(&mut BundleManifest);
    let changes: [(&str, Change); 14] = [
        ("format", |m| m.format = 2),
        ("task", |m| m.task.clear()),
        ("labels", |m| m.labels = vec![String::new(); 100_001]),
        ("labels", |m| m.labels[0] = "x".repeat(257)),
        ("request_batch", |m| m.request_batch = 0),
        ("rungs", |m| m.rungs.clear()),
        ("rungs", |m| m.rungs = vec![m.rungs[0].clone(); 17]),
        ("rungs[1].name", |m| m.rungs[1].name = m.rungs[0].name.clone()),
        ("rungs[0].name", |m| m.rungs[0].name = "a\nb".into()),
        ("rungs[0].offset_bytes", |m| m.rungs[0].offset_bytes = 1),
        ("rungs[1].offset_bytes", |m| m.rungs[1].offset_bytes = 999),
        ("rungs[0].length_bytes", |m| m.rungs[0].length_bytes = 0),
        ("rungs[1].length_bytes", |m| m.rungs[1].length_bytes = u64::MAX),
        ("rungs[1].known_answer.rtol", |m| m.rungs[1].known_answer.rtol = -1.0),
    ];
    for (expected, change) in changes {
        let (mut manifest, _) = ladder();
        change(&mut manifest);
        let error = manifest.encode().unwrap_err();
        assert!(matches!(&error, ArtifactError::Manifest { field, .. } if field == expected), "{expected}: {error}");
    }
}

#[test]
fn manifests_with_unknown_missing_or_wrong_fields_are_refused() {
    let (manifest, _) = ladder();
    let text = String::from_utf8(manifest.encode().unwrap()).unwrap();
    assert_eq!(BundleManifest::decode(text.as_bytes()).unwrap(), manifest);
    for (from, to) in [
        ("\"task\"", "\"tusk\""),
        ("{\"format\"", "{\"extra\":1,\"format\""),
        ("\"model\":\"resnet\"", "\"model\":\"../etc\""),
        ("\"version\":3", "\"version\":-3"),
        ("\"shape\":[1,3]", "\"shape\":[1,4]"),
        ("\"base64\":\"", "\"base64\":\"*"),
        ("\"element_type\":\"FP32\"", "\"element_type\":\"FP8\""),
    ] {
        let altered = text.replacen(from, to, 1);
        assert_ne!(altered, text, "{from}");
        assert!(BundleManifest::decode(altered.as_bytes()).is_err(), "{to}");
    }
    assert!(BundleManifest::decode(&vec![b' '; MAX_MANIFEST_BYTES + 1]).is_err());
}
