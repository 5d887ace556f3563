//! Tensors between the Open Inference Protocol and the domain, checked against what the model takes.

use std::time::Duration;

use pleach_domain::runtime::TensorSpec;
use pleach_domain::tensor::MAX_RANK;
use pleach_domain::{Element, ElementType, Tensor};
use pleach_proto::inference::InferTensorContents;
use serde_json::Value;

use crate::runtime::error::ServeError;
use crate::runtime::host::Host;
use crate::runtime::ladder::{Ladder, Named};

/// Longest request id; longer ones are refused, since ids are remembered until labels come.
const MAX_ID_BYTES: usize = 256;

/// The elements of one input as they came.
pub(crate) enum Content<'a> {
    /// Little-endian row-major bytes.
    Raw(&'a [u8]),
    /// Typed protobuf lists.
    Typed(&'a InferTensorContents),
    /// JSON numbers and booleans, flat or nested.
    Json(&'a Value),
}

/// Parses one input: its datatype and shape as declared, its elements as they came.
pub(crate) fn parse(name: &str, datatype: &str, shape: &[i64], content: &Content<'_>) -> Result<(String, Tensor), ServeError> {
    let refuse = |words: String| ServeError::invalid(format!("input {name:?}: {words}"));
    let kind = ElementType::from_name(datatype)
        .ok_or_else(|| refuse(format!("datatype {datatype:?}: expected FP32, FP64, INT64, INT32, UINT8 or BOOL")))?;
    let shape = shape.iter().map(|&axis| usize::try_from(axis)).collect::<Result<Vec<_>, _>>();
    let shape = shape.ok().filter(|s| s.len() <= MAX_RANK);
    let shape = shape.ok_or_else(|| refuse(format!("shape: expected at most {MAX_RANK} axes, none below 0")))?;
    let tensor = match content {
        Content::Raw(bytes) => Tensor::from_le_bytes(kind, shape, bytes),
        Content::Typed(contents) => Tensor::new(shape, typed(kind, contents).map_err(refuse)?),
        Content::Json(value) => Tensor::new(shape, json(kind, value).map_err(refuse)?),
    };
    Ok((name.to_owned(), tensor.map_err(|e| refuse(e.to_string()))?))
}

/// Checks that the inputs are the model's: each once, by name, type and shape.
pub(crate) fn check(specs: &[TensorSpec], inputs: &Named) -> Result<(), ServeError> {
    for (at, (name, tensor)) in inputs.iter().enumerate() {
        let Some(spec) = specs.iter().find(|s| s.name == *name) else {
            let names: Vec<_> = specs.iter().map(|s| &s.name).collect();
            return Err(ServeError::invalid(format!("input {name:?} is not one of the model: expected {names:?}")));
        };
        if inputs.iter().take(at).any(|(earlier, _)| earlier == name) {
            return Err(ServeError::invalid(format!("input {name:?} comes twice")));
        }
        let fits = tensor.shape().len() == spec.shape.len()
            && tensor.shape().iter().zip(&spec.shape).all(|(&got, want)| got > 0 && want.is_none_or(|w| w == got));
        if tensor.element_type() != spec.element_type || !fits {
            let (got, want) = (tensor.element_type(), spec.element_type);
            let words = format!("input {name:?} is {got} {:?}: expected {want} {}", tensor.shape(), shape_text(&spec.shape));
            return Err(ServeError::invalid(words));
        }
    }
    match specs.iter().find(|s| inputs.iter().all(|(name, _)| *name != s.name)) {
        Some(spec) => Err(ServeError::invalid(format!("input {:?} is missing", spec.name))),
        None => Ok(()),
    }
}

/// The places of the requested outputs among the model's; none requested means all.
pub(crate) fn select(specs: &[TensorSpec], names: &[&str]) -> Result<Vec<usize>, ServeError> {
    if names.is_empty() {
        return Ok((0..specs.len()).collect());
    }
    let place = |name: &&str| {
        let unknown = || {
            let all: Vec<_> = specs.iter().map(|s| &s.name).collect();
            ServeError::invalid(format!("output {name:?} is not one of the model: expected {all:?}"))
        };
        specs.iter().position(|s| s.name == *name).ok_or_else(unknown)
    };
    names.iter().map(place).collect()
}

/// The id of a request: the caller's, or a fresh one.
pub(crate) fn request_id(given: &str) -> Result<String, ServeError> {
    if given.len() > MAX_ID_BYTES {
        return Err(ServeError::invalid(format!("request id of {} bytes: expected at most {MAX_ID_BYTES}", given.len())));
    }
    if !given.is_empty() {
        return Ok(given.to_owned());
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| ServeError::Failed(format!("no randomness for a request id: {e}")))?;
    Ok(hex::encode(bytes))
}

/// One line of the model index: name, version, state and reason, in Triton's words.
pub(crate) struct IndexLine {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) state: &'static str,
    pub(crate) reason: &'static str,
}

/// What is loaded; only what serves, where `ready` asks for that.
pub(crate) fn index(host: &Host, ready: bool) -> Vec<IndexLine> {
    let line = |(ladder, serves): (std::sync::Arc<Ladder>, bool)| {
        let (state, reason) = if serves { ("READY", "") } else { ("UNAVAILABLE", "loaded, but not the one that serves") };
        IndexLine { name: ladder.model.clone(), version: ladder.version.to_string(), state, reason }
    };
    host.loaded().into_iter().filter(|(_, serves)| *serves || !ready).map(line).collect()
}

/// Time that a request gives, from its parameter `timeout` in microseconds; 0 and less mean no limit, as for Triton.
pub(crate) fn limit(timeout_us: Option<i64>) -> Option<Duration> {
    timeout_us.and_then(|us| u64::try_from(us).ok()).filter(|&us| us > 0).map(Duration::from_micros)
}

/// Axis lengths as the protocol shows them; -1 is free.
pub(crate) fn shape_of(spec: &TensorSpec) -> Vec<i64> {
    spec.shape.iter().map(|axis| axis.map_or(-1, |a| i64::try_from(a).unwrap_or(i64::MAX))).collect()
}

/// A tensor's elements as typed protobuf lists.
pub(crate) fn to_contents(tensor: &Tensor) -> InferTensorContents {
    let mut contents = InferTensorContents::default();
    match tensor.data() {
        Element::Fp32(v) => contents.fp32_contents.clone_from(v),
        Element::Fp64(v) => contents.fp64_contents.clone_from(v),
        Element::Int64(v) => contents.int64_contents.clone_from(v),
        Element::Int32(v) => contents.int_contents.clone_from(v),
        Element::Uint8(v) => contents.uint_contents = v.iter().map(|&x| x.into()).collect(),
        Element::Bool(v) => contents.bool_contents = v.iter().map(|&x| x != 0).collect(),
    }
    contents
}

fn shape_text(shape: &[Option<usize>]) -> String {
    let axes: Vec<_> = shape.iter().map(|a| a.map_or("?".to_owned(), |a| a.to_string())).collect();
    format!("[{}]", axes.join(", "))
}

fn typed(kind: ElementType, contents: &InferTensorContents) -> Result<Element, String> {
    Ok(match kind {
        ElementType::Fp32 => Element::Fp32(contents.fp32_contents.clone()),
        ElementType::Fp64 => Element::Fp64(contents.fp64_contents.clone()),
        ElementType::Int64 => Element::Int64(contents.int64_contents.clone()),
        ElementType::Int32 => Element::Int32(contents.int_contents.clone()),
        ElementType::Uint8 => {
            let bytes = contents.uint_contents.iter().map(|&x| u8::try_from(x)).collect::<Result<_, _>>();
            Element::Uint8(bytes.map_err(|_| "a value above 255: expected UINT8")?)
        }
        ElementType::Bool => Element::Bool(contents.bool_contents.iter().map(|&x| x.into()).collect()),
    })
}

fn json(kind: ElementType, value: &Value) -> Result<Element, String> {
    Ok(match kind {
        ElementType::Fp32 => Element::Fp32(flatten(value, kind, |v| v.as_f64().map(|x| x as f32))?),
        ElementType::Fp64 => Element::Fp64(flatten(value, kind, Value::as_f64)?),
        ElementType::Int64 => Element::Int64(flatten(value, kind, Value::as_i64)?),
        ElementType::Int32 => Element::Int32(flatten(value, kind, |v| v.as_i64().and_then(|x| x.try_into().ok()))?),
        ElementType::Uint8 => Element::Uint8(flatten(value, kind, |v| v.as_u64().and_then(|x| x.try_into().ok()))?),
        ElementType::Bool => {
            let flag = |v: &Value| v.as_bool().map(u8::from).or_else(|| v.as_u64().filter(|&x| x <= 1).map(|x| x as u8));
            Element::Bool(flatten(value, kind, flag)?)
        }
    })
}

/// Reads the leaves of nested lists; depth is bounded by the JSON parser.
fn flatten<T>(value: &Value, kind: ElementType, read: impl Fn(&Value) -> Option<T> + Copy) -> Result<Vec<T>, String> {
    fn walk<T>(value: &Value, out: &mut Vec<T>, kind: ElementType, read: impl Fn(&Value) -> Option<T> + Copy) -> Result<(), String> {
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| walk(item, out, kind, read)),
            leaf => {
                out.push(read(leaf).ok_or_else(|| format!("element {}: expected {kind}", out.len()))?);
                Ok(())
            }
        }
    }
    let mut out = Vec::new();
    walk(value, &mut out, kind, read)?;
    Ok(out)
}
