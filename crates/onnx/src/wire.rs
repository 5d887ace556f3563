//! A walk over the protobuf wire format before anything is decoded.
//!
//! It tells a truncated file from one that is no ONNX model, and bounds what decoding will allocate: each length-delimited
//! field of a repeated message costs a few hundred bytes of memory however short it is on the wire, so their number is limited.

use crate::error::OnnxError;

/// Messages whose fields are walked; everything else is skipped as a blob.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Named,
    Type,
    TensorType,
    HolderType,
    Shape,
    Function,
    Training,
    Sparse,
    Leaf,
}

impl Message {
    /// The message a length-delimited field holds, `None` for strings, bytes and packed lists.
    fn child(self, field: u64) -> Option<Self> {
        match (self, field) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) | (Self::Training, 1 | 2) => Some(Self::Graph),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Model, 20) => Some(Self::Training),
            (Self::Model, 8 | 14 | 26)
            | (Self::Graph, 14 | 16)
            | (Self::Node, 9 | 10)
            | (Self::Tensor, 13 | 16)
            | (Self::Function, 9 | 14)
            | (Self::Training, 3 | 4) => Some(Self::Leaf),
            (Self::Graph, 1) | (Self::Function, 7) => Some(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Some(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Some(Self::Sparse),
            (Self::Graph, 11..=13) | (Self::Function, 12) => Some(Self::Named),
            (Self::Node, 5) | (Self::Function, 11) => Some(Self::Attribute),
            (Self::Named, 2) | (Self::Attribute, 14 | 15) => Some(Self::Type),
            (Self::Type, 1 | 8) => Some(Self::TensorType),
            (Self::Type, 4 | 5 | 9) => Some(Self::HolderType),
            (Self::HolderType, 1 | 2) => Some(Self::Type),
            (Self::TensorType, 2) => Some(Self::Shape),
            (Self::Shape, 1) => Some(Self::Leaf),
            _ => None,
        }
    }
}

/// How the known fields of a model are encoded; newer formats may have others.
fn expected_wire_type(field: u64) -> Option<u64> {
    match field {
        1 | 5 => Some(0),
        2..=4 | 6..=8 | 14 | 20 | 25 | 26 => Some(2),
        _ => None,
    }
}

const MAX_DEPTH: u32 = 96;

/// Checks that `bytes` is a well-formed ModelProto skeleton with a graph and at most `max_fields` length-delimited fields.
///
/// # Errors
/// [`OnnxError::NotOnnx`], [`OnnxError::Truncated`] or [`OnnxError::TooLarge`].
pub(crate) fn check(bytes: &[u8], max_fields: u64) -> Result<(), OnnxError> {
    if bytes.is_empty() {
        return Err(OnnxError::NotOnnx { reason: "the file is empty".to_owned() });
    }
    let mut walk = Walk { bytes, fields: 0, max_fields, graph: false };
    walk.message(Message::Model, 0, bytes.len(), 0)?;
    if walk.graph { Ok(()) } else { Err(OnnxError::NotOnnx { reason: "expected a graph, found none".to_owned() }) }
}

struct Walk<'a> {
    bytes: &'a [u8],
    fields: u64,
    max_fields: u64,
    graph: bool,
}

impl Walk<'_> {
    fn message(&mut self, kind: Message, start: usize, end: usize, depth: u32) -> Result<(), OnnxError> {
        if depth > MAX_DEPTH {
            return Err(OnnxError::TooLarge { what: "nested messages", got: u64::from(depth), limit: u64::from(MAX_DEPTH) });
        }
        let mut at = start;
        while at < end {
            let tag_at = at;
            let tag = self.varint(&mut at, end)?;
            let (field, wire_type) = (tag >> 3, tag & 7);
            let expected = expected_wire_type(field).filter(|_| depth == 0);
            if field == 0 || expected.is_some_and(|e| e != wire_type) || (tag_at == 0 && expected.is_none()) {
                return Err(not_onnx(tag_at, &format!("field {field} of wire type {wire_type} is not one of a model")));
            }
            match wire_type {
                0 => drop(self.varint(&mut at, end)?),
                1 => at = self.skip(at, 8, end)?,
                5 => at = self.skip(at, 4, end)?,
                2 => at = self.delimited(kind, field, at, end, depth)?,
                other => return Err(not_onnx(tag_at, &format!("wire type {other} of field {field} is not protobuf"))),
            }
        }
        Ok(())
    }

    fn delimited(&mut self, kind: Message, field: u64, mut at: usize, end: usize, depth: u32) -> Result<usize, OnnxError> {
        let length = self.varint(&mut at, end)?;
        let next = self.skip(at, length, end)?;
        self.fields += 1;
        if self.fields > self.max_fields {
            return Err(OnnxError::TooLarge { what: "fields", got: self.fields, limit: self.max_fields });
        }
        if let Some(child) = kind.child(field) {
            self.graph |= matches!((kind, child), (Message::Model, Message::Graph));
            self.message(child, at, next, depth + 1)?;
        }
        Ok(next)
    }

    fn skip(&self, at: usize, length: u64, end: usize) -> Result<usize, OnnxError> {
        let available = end.saturating_sub(at);
        match usize::try_from(length) {
            Ok(length) if length <= available => Ok(at + length),
            _ => Err(OnnxError::Truncated { offset: at, needed: length, available }),
        }
    }

    fn varint(&self, at: &mut usize, end: usize) -> Result<u64, OnnxError> {
        let start = *at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = match self.bytes.get(*at) {
                Some(&byte) if *at < end => byte,
                _ => return Err(OnnxError::Truncated { offset: start, needed: (*at - start + 1) as u64, available: end - start }),
            };
            *at += 1;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(not_onnx(start, "a number is longer than ten bytes"))
    }
}

fn not_onnx(offset: usize, what: &str) -> OnnxError {
    OnnxError::NotOnnx { reason: format!("at byte {offset}: {what}") }
}
