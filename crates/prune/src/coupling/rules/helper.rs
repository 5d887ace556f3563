//! Integers that are computed from the lengths of axes: `Shape` and what gathers, joins and divides its elements.
//!
//! To read a length is no reason to keep it: what matters is where it goes. So each element of such a tensor knows the axes that it
//! was read from, and they are frozen where an operator uses the number in a way that does not follow.

use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::{Node, NodeId};

use super::{Axis, SPATIAL, Trace, place};

/// One element of a tensor of integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// A literal.
    Fixed(i64),
    /// A literal that a Concat joins to others for one reader alone: it can be written anew.
    Written {
        /// The Concat.
        node: NodeId,
        /// Its input.
        input: usize,
        /// Which element of it.
        index: usize,
        /// The number.
        value: i64,
    },
    /// The length of a tensor's axis.
    Length(String, usize),
    /// Some function of the lengths of these axes.
    Of(Vec<(String, usize)>),
}

impl Element {
    /// The axes it was read from.
    pub(super) fn sources(&self) -> Vec<(String, usize)> {
        match self {
            Self::Fixed(_) | Self::Written { .. } => vec![],
            Self::Length(tensor, axis) => vec![(tensor.clone(), *axis)],
            Self::Of(sources) => sources.clone(),
        }
    }

    /// As another node sees it that makes a tensor of it.
    fn read(&self) -> Self {
        match self {
            Self::Written { value, .. } => Self::Fixed(*value),
            Self::Fixed(_) | Self::Length(..) | Self::Of(_) => self.clone(),
        }
    }
}

/// Most elements of a tensor that are followed.
const MAX_ELEMENTS: usize = 64;

/// Operators whose inputs may be lengths, since their rules say what follows.
const READERS: [&str; 4] = ["Reshape", "Resize", "Expand", "ConstantOfShape"];

impl<'a> Trace<'a> {
    /// Follows the lengths that a node computes with; `None` when it computes with none.
    pub(super) fn helper(&mut self, node: Node<'a>) -> Option<()> {
        let elements = match node.op_type() {
            "Shape" => self.shape_elements(node)?,
            "Size" => vec![Element::Of(self.shape_elements(node)?.iter().flat_map(Element::sources).collect())],
            _ => self.moved_elements(node)?,
        };
        let output = node.output(0)?;
        let axes = self.new_axes(output, SPATIAL);
        self.tensors.insert(output.to_owned(), axes);
        self.elements.insert(output.to_owned(), elements);
        Some(())
    }

    /// Freezes the axes whose lengths a node reads, unless its rule says what follows.
    pub(super) fn read_lengths(&mut self, node: Node<'a>) {
        let reads = node.inputs().chain(node.captured());
        let sources: Vec<(String, usize)> = reads.filter_map(|name| self.elements.get(name)).flatten().flat_map(Element::sources).collect();
        if sources.is_empty() || READERS.contains(&node.op_type()) {
            return;
        }
        self.freeze_sources(&sources, &format!("{} computes with its length", place(node)));
    }

    pub(super) fn freeze_sources(&mut self, sources: &[(String, usize)], reason: &str) {
        for (tensor, axis) in sources {
            if let Some(own) = self.axes(tensor).and_then(|axes| axes.get(*axis).cloned()) {
                self.atoms.freeze(&own, reason);
            }
        }
    }

    fn shape_elements(&self, node: Node<'a>) -> Option<Vec<Element>> {
        let name = node.input(0)?;
        let rank = self.dims(name)?.len();
        let clamp = |bound: i64| usize::try_from(if bound < 0 { bound + rank as i64 } else { bound }).unwrap_or(0).min(rank);
        let (start, end) = (clamp(node.int("start").unwrap_or(0)), clamp(node.int("end").unwrap_or(i64::MAX)));
        Some((start..end).map(|axis| Element::Length(name.to_owned(), axis)).collect())
    }

    /// Elements of a node that moves or computes with lengths.
    fn moved_elements(&self, node: Node<'a>) -> Option<Vec<Element>> {
        let inputs: Vec<&str> = node.inputs().collect();
        if !inputs.iter().any(|name| self.elements.contains_key(*name)) || !node.domain().is_empty() {
            return None;
        }
        let count = self.dims(node.output(0)?)?.iter().product::<usize>();
        if count > MAX_ELEMENTS || node.outputs().count() != 1 {
            return None;
        }
        let first = self.elements.get(*inputs.first()?).map(|list| list.iter().map(Element::read).collect::<Vec<_>>());
        let first = first.as_ref();
        match node.op_type() {
            "Cast" | "Identity" | "Squeeze" | "Unsqueeze" => first.cloned(),
            "Concat" => {
                (0..node.proto.input.len()).map(|input| self.joined_elements(node, input)).collect::<Option<Vec<_>>>().map(|l| l.concat())
            }
            "Gather" => {
                let (list, length) = (first?, first?.len() as i64);
                let at = |i: i64| list.get(usize::try_from(if i < 0 { i + length } else { i }).ok()?).cloned();
                self.model.ints(node.input(1)?)?.into_iter().map(at).collect()
            }
            "Slice" => {
                let list = first?;
                let bound = |input: usize, name: &str| match node.ints(name) {
                    Some(list) => list.first().copied(),
                    None => self.model.ints(node.input(input)?)?.first().copied(),
                };
                let step = if node.input(4).is_some() { bound(4, "steps")? } else { 1 };
                let clamp = |b: i64| usize::try_from(if b < 0 { b + list.len() as i64 } else { b }).unwrap_or(0).min(list.len());
                let range = clamp(bound(1, "starts")?)..clamp(bound(2, "ends")?);
                list.get(range).filter(|_| step == 1).map(<[Element]>::to_vec)
            }
            "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Floor" | "Ceil" | "Max" | "Min" | "Equal" | "Where" | "Pow" | "Sqrt" | "Reshape"
            | "ReduceProd" | "Greater" | "Less" | "Not" | "Neg" | "Abs" | "And" | "Or" => {
                let sources: Vec<_> =
                    inputs.iter().filter_map(|name| self.elements.get(*name)).flatten().flat_map(Element::sources).collect();
                // With an activation among the inputs it is no helper.
                let helpers = inputs.iter().all(|name| self.elements.contains_key(*name) || self.root(name).is_some());
                helpers.then(|| vec![Element::Of(sources); count])
            }
            _ => None,
        }
    }

    /// Elements of one input of a Concat.
    fn joined_elements(&self, node: Node<'a>, input: usize) -> Option<Vec<Element>> {
        let name = node.input(input)?;
        if let Some(list) = self.elements.get(name) {
            return Some(list.iter().map(Element::read).collect());
        }
        let output = node.output(0)?;
        let alone = self.model.consumers(output).len() == 1 && !self.model.is_output(output);
        let wide = self.model.constant_type(name) == Some(DataType::Int64.into());
        let element = |(index, value)| {
            if alone && wide { Element::Written { node: node.id, input, index, value } } else { Element::Fixed(value) }
        };
        Some(self.model.ints(name)?.into_iter().enumerate().map(element).collect())
    }

    /// The axis whose length an element of a computed tensor is.
    pub(super) fn length_of(&self, name: &str, index: usize) -> Option<(String, usize)> {
        match self.elements.get(name)?.get(index)? {
            Element::Length(tensor, axis) => Some((tensor.clone(), *axis)),
            Element::Fixed(_) | Element::Written { .. } | Element::Of(_) => None,
        }
    }

    /// Whether an element of a shape stays true of an axis whatever its length.
    pub(super) fn follows(&self, element: &Element, axis: &Axis) -> bool {
        match element {
            Element::Fixed(value) | Element::Written { value, .. } => *value < 2,
            Element::Length(tensor, at) => self.tensors.get(tensor).and_then(|axes| axes.get(*at)) == Some(axis),
            Element::Of(_) => false,
        }
    }
}
