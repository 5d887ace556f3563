//! The manifest at the head of a payload: what the rungs are, how they are fed, and the answers they must give.
//!
//! It is JSON, parsed strictly: unknown fields are refused, because a device must not run a bundle it half understands;
//! additions get a new format number.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pleach_domain::id::ModelName;
use pleach_domain::runtime::TensorSpec;
use pleach_domain::{ClassId, Digest, ElementType, Tensor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::ArtifactError;
use crate::header::MAX_PLAINTEXT_BYTES;

/// The manifest format this version writes and reads.
pub const MANIFEST_FORMAT: u32 = 1;
/// Longest manifest: 8 MiB, room for the known-answer input of a camera-sized model in base64.
pub const MAX_MANIFEST_BYTES: usize = 8 << 20;
/// Most rungs a ladder may have.
pub const MAX_RUNGS: usize = 16;

const MAX_LABELS: usize = 100_000;
const MAX_TENSORS: usize = 64;
const MAX_TEXT_BYTES: usize = 256;

/// A ladder and what is needed to serve it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleManifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// Name of the model.
    pub model: ModelName,
    /// Version of the model.
    pub version: u64,
    /// Class the bundle was made for.
    pub class: ClassId,
    /// What the model does, e.g. `classification`.
    pub task: String,
    /// Names of the answers, by index; may be empty.
    pub labels: Vec<String>,
    /// Inputs that every rung takes.
    pub inputs: Vec<TensorSpec>,
    /// Outputs that every rung gives.
    pub outputs: Vec<TensorSpec>,
    /// Rows in one request, as the latency was measured.
    pub request_batch: u32,
    /// The inputs of the known-answer test, shared by all rungs.
    pub known_answer_inputs: Vec<NamedTensor>,
    /// The ladder, from slim to full.
    pub rungs: Vec<Rung>,
    /// When the bundle was made, milliseconds UTC.
    pub created_at_ms: i64,
}

/// One rung: an ONNX file in the payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rung {
    /// Name, unique in the ladder.
    pub name: String,
    /// Where the file begins, in bytes from the end of the manifest.
    pub offset_bytes: u64,
    /// Length of the file in bytes.
    pub length_bytes: u64,
    /// SHA-256 of the file.
    pub sha256: Digest,
    /// Multiply-accumulates for one row.
    pub macs: u64,
    /// What the rung must answer to [`BundleManifest::known_answer_inputs`].
    pub known_answer: KnownAnswer,
}

/// Expected outputs and how near an answer must come: `|got - expected| <= atol + rtol * |expected|`, element by element.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownAnswer {
    /// Expected outputs by name.
    pub outputs: Vec<NamedTensor>,
    /// Relative tolerance.
    pub rtol: f32,
    /// Absolute tolerance.
    pub atol: f32,
}

/// A tensor by name; in JSON its elements are base64 of little-endian row-major bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Name of the input or output.
    pub name: String,
    /// The elements.
    pub tensor: Tensor,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorText {
    name: String,
    element_type: ElementType,
    shape: Vec<usize>,
    base64: String,
}

impl Serialize for NamedTensor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = TensorText {
            name: self.name.clone(),
            element_type: self.tensor.element_type(),
            shape: self.tensor.shape().to_vec(),
            base64: STANDARD.encode(self.tensor.to_le_bytes()),
        };
        text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for NamedTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = TensorText::deserialize(deserializer)?;
        let bytes = STANDARD.decode(&text.base64).map_err(de::Error::custom)?;
        let tensor = Tensor::from_le_bytes(text.element_type, text.shape, &bytes).map_err(de::Error::custom)?;
        Ok(Self { name: text.name, tensor })
    }
}

impl BundleManifest {
    /// Encodes a manifest that [`BundleManifest::decode`] accepts.
    ///
    /// # Errors
    /// [`ArtifactError::Manifest`] naming the field that is out of its range.
    pub fn encode(&self) -> Result<Vec<u8>, ArtifactError> {
        self.validate()?;
        let bytes = serde_json::to_vec(self).map_err(ArtifactError::ManifestSyntax)?;
        within("length", bytes.len() as u64, MAX_MANIFEST_BYTES as u64)?;
        Ok(bytes)
    }

    /// Parses a manifest.
    ///
    /// # Errors
    /// [`ArtifactError::ManifestSyntax`] for anything but its JSON, [`ArtifactError::Manifest`] for a value out of its range.
    pub fn decode(bytes: &[u8]) -> Result<Self, ArtifactError> {
        within("length", bytes.len() as u64, MAX_MANIFEST_BYTES as u64)?;
        let manifest: Self = serde_json::from_slice(bytes).map_err(ArtifactError::ManifestSyntax)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Bytes of all rungs together.
    pub fn rungs_bytes(&self) -> u64 {
        self.rungs.iter().fold(0, |sum, rung| sum.saturating_add(rung.length_bytes))
    }

    fn validate(&self) -> Result<(), ArtifactError> {
        if self.format != MANIFEST_FORMAT {
            return Err(field("format", self.format, MANIFEST_FORMAT));
        }
        within("labels", self.labels.len() as u64, MAX_LABELS as u64)?;
        within("inputs", self.inputs.len() as u64, MAX_TENSORS as u64)?;
        within("outputs", self.outputs.len() as u64, MAX_TENSORS as u64)?;
        within("known_answer_inputs", self.known_answer_inputs.len() as u64, MAX_TENSORS as u64)?;
        within("rungs", self.rungs.len() as u64, MAX_RUNGS as u64)?;
        text("task", &self.task)?;
        self.labels.iter().try_for_each(|label| within("labels", label.len() as u64, MAX_TEXT_BYTES as u64))?;
        if self.request_batch == 0 {
            return Err(field("request_batch", 0, "at least 1"));
        }
        if self.rungs.is_empty() {
            return Err(field("rungs", "empty", "at least one rung"));
        }
        let mut end = 0u64;
        for (index, rung) in self.rungs.iter().enumerate() {
            let name = |of: &str| format!("rungs[{index}].{of}");
            text(&name("name"), &rung.name)?;
            if self.rungs.iter().take(index).any(|earlier| earlier.name == rung.name) {
                return Err(field(name("name"), &rung.name, "a name that no other rung has"));
            }
            // One after the other without gaps: the ladder has one encoding and nothing hides between the rungs.
            if rung.offset_bytes != end {
                return Err(field(name("offset_bytes"), rung.offset_bytes, end));
            }
            if rung.length_bytes == 0 || rung.length_bytes > MAX_PLAINTEXT_BYTES {
                return Err(field(name("length_bytes"), rung.length_bytes, format!("1 to {MAX_PLAINTEXT_BYTES}")));
            }
            within(&name("known_answer.outputs"), rung.known_answer.outputs.len() as u64, MAX_TENSORS as u64)?;
            for (of, value) in [("rtol", rung.known_answer.rtol), ("atol", rung.known_answer.atol)] {
                if !value.is_finite() || value < 0.0 {
                    return Err(field(name(&format!("known_answer.{of}")), value, "a finite number of at least 0"));
                }
            }
            end += rung.length_bytes;
        }
        within("rungs", end, MAX_PLAINTEXT_BYTES)
    }
}

fn field(field: impl Into<String>, got: impl ToString, expected: impl ToString) -> ArtifactError {
    ArtifactError::Manifest { field: field.into(), got: got.to_string(), expected: expected.to_string() }
}

fn within(name: &str, got: u64, most: u64) -> Result<(), ArtifactError> {
    if got <= most { Ok(()) } else { Err(field(name, got, format!("at most {most}"))) }
}

fn text(name: &str, value: &str) -> Result<(), ArtifactError> {
    let printable = !value.is_empty() && value.len() <= MAX_TEXT_BYTES && !value.chars().any(char::is_control);
    let shown = || value.chars().take(80).collect::<String>();
    if printable { Ok(()) } else { Err(field(name, format!("{:?}", shown()), "1 to 256 bytes of printable text")) }
}
