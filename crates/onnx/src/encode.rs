//! Writes a patched model so that everything the patch did not touch keeps its very bytes.
//!
//! The bytes that were read are kept. A node, constant or value of the patched graph that equals what some of those bytes decode
//! to is written as those bytes, whatever their encoding; a changed one is encoded anew and keeps the fields our schema does not
//! know. All other fields of model and graph are copied. Weights are never copied but into the result.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use prost::Message;
use prost::bytes::{Bytes, BytesMut};

use crate::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use crate::tensor;
use crate::validate::Limits;
use crate::wire::{self, Field};

/// Number of the graph among a model's fields.
const GRAPH: u64 = 7;

/// Encodes `model` with `graph` in place of its own, reusing the bytes of `original`; `None` when those hold no graph, or several.
pub(crate) fn splice(original: &Bytes, model: &ModelProto, graph: &GraphProto) -> Option<Vec<u8>> {
    let limits = Limits::unlimited();
    let outer = wire::fields(original, 0..original.len(), &limits).ok()?;
    let mut graphs = outer.iter().filter(|field| field.number == GRAPH);
    let (Some(place), None) = (graphs.next(), graphs.next()) else { return None };
    let inner = wire::fields(original, place.content.clone(), &limits).ok()?;
    let inner = replace(
        original,
        &inner,
        vec![
            (1, elements(original, &inner, 1, &graph.node)?),
            (5, elements(original, &inner, 5, &graph.initializer)?),
            (11, elements(original, &inner, 11, &graph.input)?),
            (12, elements(original, &inner, 12, &graph.output)?),
            (13, elements(original, &inner, 13, &graph.value_info)?),
        ],
    );
    let mut pieces = vec![header(GRAPH, total(&inner))];
    pieces.extend(inner);
    let replaced = vec![
        (GRAPH, pieces),
        (8, elements(original, &outer, 8, &model.opset_import)?),
        (25, elements(original, &outer, 25, &model.functions)?),
    ];
    let pieces = replace(original, &outer, replaced);
    let mut out = Vec::with_capacity(total(&pieces));
    pieces.iter().for_each(|piece| out.extend_from_slice(piece));
    Some(out)
}

/// Copies fields, but for those replaced: their pieces stand where the first of them stood, or at the end.
fn replace(original: &Bytes, fields: &[Field], mut replaced: Vec<(u64, Vec<Bytes>)>) -> Vec<Bytes> {
    let numbers: Vec<u64> = replaced.iter().map(|(number, _)| *number).collect();
    let mut out = Vec::new();
    for field in fields {
        if let Some(at) = replaced.iter().position(|(number, _)| *number == field.number) {
            out.extend(replaced.swap_remove(at).1);
        } else if !numbers.contains(&field.number) {
            out.push(original.slice(field.whole.clone()));
        }
    }
    replaced.sort_unstable_by_key(|(number, _)| *number);
    out.extend(replaced.into_iter().flat_map(|(_, pieces)| pieces));
    out
}

/// What may stand several times in a model or graph and be replaced by a patch.
trait Element: Message + Default + PartialEq + Clone {
    /// Greatest field number of our schema.
    const LAST_FIELD: u64;

    /// What tells it from others of its kind.
    fn key(&self) -> String;

    /// As a decoded element looks in a [`crate::Model`].
    fn settled(self) -> Self {
        self
    }

    /// The large part, to be written behind all others as this field.
    fn take_payload(&mut self) -> Option<(u64, Bytes)> {
        None
    }
}

impl Element for NodeProto {
    const LAST_FIELD: u64 = 10;

    fn key(&self) -> String {
        self.output.iter().find(|name| !name.is_empty()).cloned().unwrap_or_default()
    }
}

impl Element for TensorProto {
    const LAST_FIELD: u64 = 16;

    fn key(&self) -> String {
        self.name().to_owned()
    }

    fn settled(mut self) -> Self {
        tensor::settle(&mut self);
        self
    }

    fn take_payload(&mut self) -> Option<(u64, Bytes)> {
        self.raw_data.take().map(|raw| (9, raw))
    }
}

impl Element for ValueInfoProto {
    const LAST_FIELD: u64 = 4;

    fn key(&self) -> String {
        self.name().to_owned()
    }
}

impl Element for OperatorSetIdProto {
    const LAST_FIELD: u64 = 2;

    fn key(&self) -> String {
        self.domain().to_owned()
    }
}

impl Element for FunctionProto {
    const LAST_FIELD: u64 = 14;

    fn key(&self) -> String {
        format!("{}\n{}\n{}", self.domain(), self.name(), self.overload())
    }
}

/// The pieces of all elements of one kind, in order.
fn elements<T: Element>(original: &Bytes, fields: &[Field], number: u64, now: &[T]) -> Option<Vec<Bytes>> {
    let decode = |field: &Field| T::decode(original.slice(field.content.clone())).ok();
    let mut before: HashMap<String, VecDeque<&Field>> = HashMap::new();
    for field in fields.iter().filter(|field| field.number == number) {
        before.entry(decode(field)?.key()).or_default().push_back(field);
    }
    let mut pieces = Vec::with_capacity(now.len());
    for element in now {
        match before.get_mut(&element.key()).and_then(VecDeque::pop_front) {
            Some(field) if decode(field)?.settled() == *element => pieces.push(original.slice(field.whole.clone())),
            old => changed(original, number, element, old.map(|field| field.content.clone()), &mut pieces)?,
        }
    }
    Some(pieces)
}

/// An element that is new, or that changed from what `old` holds.
fn changed<T: Element>(original: &Bytes, number: u64, element: &T, old: Option<Range<usize>>, pieces: &mut Vec<Bytes>) -> Option<()> {
    let mut element = element.clone();
    let payload = element.take_payload();
    let mut content = vec![Bytes::from(element.encode_to_vec())];
    for field in wire::fields(original, old.unwrap_or(0..0), &Limits::unlimited()).ok()? {
        if field.number > T::LAST_FIELD {
            content.push(original.slice(field.whole));
        }
    }
    if let Some((field, bytes)) = payload {
        content.extend([header(field, bytes.len()), bytes]);
    }
    pieces.push(header(number, total(&content)));
    pieces.extend(content);
    Some(())
}

fn header(number: u64, length: usize) -> Bytes {
    let mut out = BytesMut::new();
    for varint in [(number << 3 | 2) as usize, length] {
        // Never fails: the buffer grows.
        let _ = prost::encode_length_delimiter(varint, &mut out);
    }
    out.freeze()
}

fn total(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}
