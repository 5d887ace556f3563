//! A walk over the protobuf wire format before anything is decoded.
//!
//! It tells a truncated file from one that is no ONNX model, and bounds what decoding will allocate: each length-delimited
//! field of a repeated message costs a few hundred bytes of memory however short it is on the wire, so their number is limited,
//! and so is the number of list elements, of which one byte on the wire becomes up to eight.

use std::ops::Range;

use crate::error::OnnxError;
use crate::validate::Limits;

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

/// Bytes that one decoded element of a list field takes where that may be more than on the wire; `None` for other fields.
fn element_bytes(message: Message, field: u64) -> Option<u64> {
    match (message, field) {
        (Message::Tensor, 5) => Some(4),
        (Message::Tensor, 1 | 7 | 11) | (Message::Attribute, 8) | (Message::Sparse, 3) => Some(8),
        _ => None,
    }
}

/// Deepest nesting of messages and groups; prost stops at 100.
const MAX_DEPTH: u32 = 96;

/// Checks that `bytes` is a well-formed ModelProto skeleton with a graph, within the limits.
///
/// # Errors
/// [`OnnxError::NotOnnx`], [`OnnxError::Truncated`] or [`OnnxError::TooLarge`].
pub(crate) fn check(bytes: &[u8], limits: &Limits) -> Result<(), OnnxError> {
    if bytes.is_empty() {
        return Err(OnnxError::NotOnnx { reason: "the file is empty".to_owned() });
    }
    let mut walk = Walk { bytes, fields: 0, list_bytes: 0, limits, graph: false };
    walk.message(Message::Model, 0, bytes.len(), 0)?;
    if walk.graph { Ok(()) } else { Err(OnnxError::NotOnnx { reason: "expected a graph, found none".to_owned() }) }
}

/// One field of a message, as places in the bytes it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Field number.
    pub(crate) number: u64,
    /// Tag, length and content.
    pub(crate) whole: Range<usize>,
    /// Content of a length-delimited field; empty for others.
    pub(crate) content: Range<usize>,
}

/// The fields of a message in `bytes[range]`, in order.
///
/// # Errors
/// As [`check`].
pub(crate) fn fields(bytes: &[u8], range: Range<usize>, limits: &Limits) -> Result<Vec<Field>, OnnxError> {
    let walk = Walk { bytes, fields: 0, list_bytes: 0, limits, graph: false };
    let (mut found, mut at) = (Vec::new(), range.start);
    while at < range.end {
        let start = at;
        let tag = walk.varint(&mut at, range.end)?;
        let mut content = at..at;
        if tag & 7 == 2 {
            let length = walk.varint(&mut at, range.end)?;
            content = at..walk.skip(at, length, range.end)?;
            at = content.end;
        } else {
            at = walk.scalar(tag, start, at, range.end, 0)?;
        }
        found.push(Field { number: tag >> 3, whole: start..at, content });
    }
    Ok(found)
}

struct Walk<'a> {
    bytes: &'a [u8],
    fields: u64,
    list_bytes: u64,
    limits: &'a Limits,
    graph: bool,
}

impl Walk<'_> {
    fn message(&mut self, kind: Message, start: usize, end: usize, depth: u32) -> Result<(), OnnxError> {
        if depth > MAX_DEPTH {
            return Err(too_deep(depth));
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
            at = match wire_type {
                2 => self.delimited(kind, field, at, end, depth)?,
                _ => self.scalar(tag, tag_at, at, end, depth)?,
            };
            if let Some(size) = element_bytes(kind, field).filter(|_| wire_type == 0) {
                self.count_list(size)?;
            }
        }
        Ok(())
    }

    /// Skips the content of a field that is not length-delimited; groups, which nothing of ours knows, with all in them.
    fn scalar(&self, tag: u64, tag_at: usize, mut at: usize, end: usize, depth: u32) -> Result<usize, OnnxError> {
        match tag & 7 {
            0 => self.varint(&mut at, end).map(|_| at),
            1 => self.skip(at, 8, end),
            5 => self.skip(at, 4, end),
            3 => self.group(tag >> 3, at, end, depth + 1),
            other => Err(not_onnx(tag_at, &format!("wire type {other} of field {} is not protobuf", tag >> 3))),
        }
    }

    fn group(&self, field: u64, mut at: usize, end: usize, depth: u32) -> Result<usize, OnnxError> {
        if depth > MAX_DEPTH {
            return Err(too_deep(depth));
        }
        loop {
            let tag_at = at;
            let tag = self.varint(&mut at, end)?;
            match tag & 7 {
                4 if tag >> 3 == field => return Ok(at),
                2 => {
                    let length = self.varint(&mut at, end)?;
                    at = self.skip(at, length, end)?;
                }
                _ => at = self.scalar(tag, tag_at, at, end, depth)?,
            }
        }
    }

    fn delimited(&mut self, kind: Message, field: u64, mut at: usize, end: usize, depth: u32) -> Result<usize, OnnxError> {
        let length = self.varint(&mut at, end)?;
        let next = self.skip(at, length, end)?;
        self.fields += 1;
        if self.fields > self.limits.max_fields {
            return Err(OnnxError::TooLarge { what: "fields", got: self.fields, limit: self.limits.max_fields });
        }
        if let Some(size) = element_bytes(kind, field) {
            // Every number ends in a byte without the continuation bit.
            let numbers = self.bytes.get(at..next).map_or(0, |list| list.iter().filter(|&b| b & 0x80 == 0).count());
            self.count_list(size.saturating_mul(numbers as u64))?;
        }
        if let Some(child) = kind.child(field) {
            self.graph |= matches!((kind, child), (Message::Model, Message::Graph));
            self.message(child, at, next, depth + 1)?;
        }
        Ok(next)
    }

    fn count_list(&mut self, bytes: u64) -> Result<(), OnnxError> {
        self.list_bytes = self.list_bytes.saturating_add(bytes);
        let limit = self.limits.max_list_bytes;
        if self.list_bytes <= limit { Ok(()) } else { Err(OnnxError::TooLarge { what: "bytes in lists", got: self.list_bytes, limit }) }
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

fn too_deep(depth: u32) -> OnnxError {
    OnnxError::TooLarge { what: "nested messages", got: u64::from(depth), limit: u64::from(MAX_DEPTH) }
}

fn not_onnx(offset: usize, what: &str) -> OnnxError {
    OnnxError::NotOnnx { reason: format!("at byte {offset}: {what}") }
}
