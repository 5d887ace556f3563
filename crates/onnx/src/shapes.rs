//! Shapes without a shape-inference engine: a probe copy of the model, run at two batch sizes, tells them all.
//!
//! The probe hangs a `Shape` node on every tensor and gives only those as outputs, so any operator the runtime runs is covered
//! and only a few integers leave it. Axes that moved between the runs grow with the batch; the others are static.
//! Shapes depend neither on the values of large weights nor on what a layer sums over, so the probe's layers read one channel and
//! make zeros for weights where they run: it is small and fast.

mod thin;

use std::collections::{BTreeSet, HashMap};

use crate::builder;
use crate::error::OnnxError;
use crate::model::Model;
use crate::patch::Patch;
use crate::proto::ValueInfoProto;

/// Length of one axis as a function of the batch: `base + per_row * rows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisLength {
    /// Length at batch 0.
    pub base: i64,
    /// Growth with each row of the batch; 0 for static axes.
    pub per_row: i64,
}

impl AxisLength {
    /// Length at a batch size, in elements; 0 when it would be negative.
    pub fn at(self, rows: usize) -> usize {
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        usize::try_from(self.per_row.saturating_mul(rows).saturating_add(self.base)).unwrap_or(0)
    }
}

/// Shapes of every tensor of a model that is a tensor at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shapes {
    tensors: HashMap<String, Vec<AxisLength>>,
}

impl Shapes {
    /// Axis lengths of a tensor at a batch size.
    pub fn at(&self, tensor: &str, rows: usize) -> Option<Vec<usize>> {
        self.tensors.get(tensor).map(|axes| axes.iter().map(|axis| axis.at(rows)).collect())
    }

    /// Axes of a tensor.
    pub fn axes(&self, tensor: &str) -> Option<&[AxisLength]> {
        self.tensors.get(tensor).map(Vec::as_slice)
    }

    /// Records a tensor's axes, e.g. of a graph built by hand.
    pub fn insert(&mut self, tensor: &str, axes: Vec<AxisLength>) {
        self.tensors.insert(tensor.to_owned(), axes);
    }
}

/// A copy of a model whose outputs are the shapes of its tensors.
#[derive(Clone, Debug)]
pub struct ShapeProbe {
    /// The copy to run; each output is a list of INT64 axis lengths.
    pub model: Model,
    tensors: Vec<String>,
    known: Shapes,
}

/// Elements beyond which a weight is not carried by the probe: what smaller ones hold may be lengths.
const LARGE_ELEMENTS: usize = 4096;
/// First ai.onnx version with ConstantOfShape.
const CONSTANT_OF_SHAPE: i64 = 9;

impl ShapeProbe {
    /// Builds the probe of a model.
    ///
    /// # Errors
    /// What validation finds in the probe.
    pub fn new(model: &Model) -> Result<Self, OnnxError> {
        Self::keeping(model, &BTreeSet::new())
    }

    /// As [`ShapeProbe::new`], where the tensors named, and with them all that they are computed from, have their true values.
    ///
    /// # Errors
    /// What validation finds in the probe.
    pub fn keeping(model: &Model, tensors: &BTreeSet<String>) -> Result<Self, OnnxError> {
        let mut patch = Patch::new();
        thin::thin(model, tensors, &mut patch)?;
        Self::with(model, patch)
    }

    /// As [`ShapeProbe::new`], with the weights themselves, for operators that want theirs constant.
    ///
    /// # Errors
    /// What validation finds in the probe.
    pub fn with_weights(model: &Model) -> Result<Self, OnnxError> {
        Self::with(model, Patch::new())
    }

    fn with(model: &Model, mut patch: Patch) -> Result<Self, OnnxError> {
        let mut known = Shapes::default();
        for name in model.constants() {
            let dims = model.constant_dims(name).unwrap_or_default();
            known.insert(name, dims.iter().map(|&d| AxisLength { base: i64::try_from(d).unwrap_or(i64::MAX), per_row: 0 }).collect());
        }
        let inputs: Vec<String> = model.inputs().into_iter().map(|i| i.name).collect();
        let made = model.nodes().filter(|n| !no_tensor(n.op_type()) && n.output(0).is_none_or(|name| model.constant_dims(name).is_none()));
        let produced = made.flat_map(|n| n.outputs()).map(str::to_owned);
        let tensors: Vec<String> = inputs.into_iter().chain(produced).collect();
        let names: Vec<String> = (0..tensors.len()).map(|i| format!("pleach.shape.{i}")).collect();
        // The runtime runs the last of the nodes that nobody reads first. Backwards, each shape is read as soon as its tensor is
        // there, and the tensor is freed; forwards, all tensors of the model are alive at the end.
        for (tensor, name) in tensors.iter().zip(&names).rev() {
            patch.append_node(builder::node("Shape", name, &[tensor], name, vec![]));
        }
        let outputs = names.iter().map(|name| shape_output(name)).collect();
        patch.set_outputs(outputs);
        Ok(Self { model: model.apply(&patch)?, tensors, known })
    }

    /// Names of the tensors whose shapes the outputs are, in their order.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(String::as_str)
    }

    /// Reads the shapes off two runs at different batch sizes; outputs in the order of the probe model's. For a model of fixed
    /// batch give the same run twice.
    ///
    /// # Errors
    /// [`OnnxError::Probe`] when the results do not fit the probe.
    pub fn read(&self, small: (usize, &[Vec<i64>]), large: (usize, &[Vec<i64>])) -> Result<Shapes, OnnxError> {
        let expected = self.tensors.len();
        if small.1.len() != expected || large.1.len() != expected {
            return Err(OnnxError::Probe(format!("expected {expected} shapes, got {} and {}", small.1.len(), large.1.len())));
        }
        let rows = large.0 as i64 - small.0 as i64;
        let mut shapes = self.known.clone();
        for ((tensor, a), b) in self.tensors.iter().zip(small.1).zip(large.1) {
            if a.len() != b.len() {
                return Err(OnnxError::Probe(format!("the rank of `{tensor}` moves with the batch: {a:?} and {b:?}")));
            }
            let axis = |(&a, &b): (&i64, &i64)| {
                let per_row = if rows == 0 { 0 } else { (b - a) / rows };
                AxisLength { base: a - per_row * small.0 as i64, per_row }
            };
            shapes.insert(tensor, a.iter().zip(b).map(axis).collect());
        }
        Ok(shapes)
    }
}

fn shape_output(name: &str) -> ValueInfoProto {
    builder::value_info(name, builder::ElementKind::Int64, None)
}

/// Operators whose outputs are sequences or optionals, which have no shape.
fn no_tensor(op: &str) -> bool {
    matches!(
        op,
        "SequenceConstruct"
            | "SequenceEmpty"
            | "SequenceInsert"
            | "SequenceErase"
            | "SequenceMap"
            | "SplitToSequence"
            | "Optional"
            | "ZipMap"
    )
}
