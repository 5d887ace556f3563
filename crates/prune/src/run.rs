//! Runs models over rows of data through the lent runtime: whole, or piece by piece from activations already held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;

use pleach_domain::runtime::{LoadedModel, Optimization, Runtime};
use pleach_domain::{Element, Tensor};
use pleach_onnx::builder::{Dim, ElementKind, value_info};
use pleach_onnx::proto::{GraphProto, ModelProto};
use pleach_onnx::{Limits, Model};
use rayon::prelude::*;

use crate::error::PruneError;
use crate::network::{model_error, runtime as failed};
use crate::progress::Stage;

/// Most copies of one model.
const MOST_COPIES: usize = 8;

/// Rows by input name.
pub(crate) type Inputs<'a> = BTreeMap<&'a str, &'a Tensor>;

/// Copies of a model that are of use: one for each thread.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads().clamp(1, MOST_COPIES)
}

/// A loaded model and the number of rows it takes at once.
pub(crate) struct Runner {
    copies: Vec<Mutex<Box<dyn LoadedModel>>>,
    batch: usize,
    stage: Stage,
}

impl Runner {
    /// Loads so many copies of a model, each for one thread.
    pub(crate) fn new(runtime: &dyn Runtime, model: &Model, batch: usize, stage: Stage, copies: usize) -> Result<Self, PruneError> {
        let bytes = model.encode();
        let load = |_| runtime.load(&bytes, Optimization::All).map(Mutex::new);
        let copies = (0..copies.max(1)).into_par_iter().map(load).collect::<Result<_, _>>().map_err(failed(stage))?;
        Ok(Self { copies, batch, stage })
    }

    /// Runs rows batch by batch and gives each batch's outputs to `sink`, in order. Rows behind the last whole batch of a model
    /// of fixed batch are left out.
    pub(crate) fn for_each(
        &self,
        inputs: &Inputs<'_>,
        fixed: bool,
        mut sink: impl FnMut(usize, Vec<Tensor>) -> Result<(), PruneError>,
    ) -> Result<(), PruneError> {
        let rows = inputs.values().next().map_or(0, |t| t.rows());
        let batches = if fixed { rows / self.batch } else { rows.div_ceil(self.batch) };
        for wave in (0..batches).collect::<Vec<_>>().chunks(self.copies.len()) {
            let run = |(&batch, copy): (&usize, &Mutex<Box<dyn LoadedModel>>)| {
                let part: Vec<(&str, Tensor)> =
                    inputs.iter().map(|(n, t)| (*n, t.slice_rows(batch * self.batch, (batch + 1) * self.batch))).collect();
                let named: Vec<(&str, &Tensor)> = part.iter().map(|(n, t)| (*n, t)).collect();
                copy.lock().unwrap_or_else(std::sync::PoisonError::into_inner).run(&named)
            };
            let outputs: Vec<_> = wave.par_iter().zip(&self.copies).map(run).collect();
            for (batch, output) in wave.iter().zip(outputs) {
                sink(batch * self.batch, output.map_err(failed(self.stage))?)?;
            }
        }
        Ok(())
    }

    /// Runs all rows and joins the outputs, which must be floats that grow with the rows.
    pub(crate) fn run(&self, inputs: &Inputs<'_>, fixed: bool) -> Result<Vec<Tensor>, PruneError> {
        let mut joined: Vec<(Vec<usize>, Vec<f32>)> = Vec::new();
        self.for_each(inputs, fixed, |_, outputs| {
            joined.resize(outputs.len(), (Vec::new(), Vec::new()));
            for ((shape, data), tensor) in joined.iter_mut().zip(outputs) {
                let rows = shape.first().copied().unwrap_or(0) + tensor.rows();
                *shape = tensor.shape().to_vec();
                if let Some(first) = shape.first_mut() {
                    *first = rows;
                }
                data.extend_from_slice(floats(&tensor)?);
            }
            Ok(())
        })?;
        joined.into_iter().map(|(shape, data)| Tensor::fp32(shape, data).map_err(model_error)).collect()
    }
}

/// The elements of a float tensor.
pub(crate) fn floats(tensor: &Tensor) -> Result<&[f32], PruneError> {
    match tensor.data() {
        Element::Fp32(values) => Ok(values),
        Element::Fp64(_) | Element::Int64(_) | Element::Int32(_) | Element::Uint8(_) | Element::Bool(_) => {
            Err(PruneError::Unsupported { expected: "single-precision activations", got: format!("{} activations", tensor.element_type()) })
        }
    }
}

/// Constants that replace a model's, by name: axis lengths and elements.
pub(crate) type Overrides = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// A model that is run piece by piece, front to back, while its constants change: activations already computed are held for as
/// long as something asked for later depends on them.
pub(crate) struct Frontier<'a> {
    runtime: &'a dyn Runtime,
    model: &'a Model,
    skeleton: ModelProto,
    held: BTreeMap<String, Tensor>,
    pub(crate) overrides: Overrides,
    batch: usize,
    fixed: bool,
    stage: Stage,
    copies: usize,
}

impl<'a> Frontier<'a> {
    pub(crate) fn new(
        runtime: &'a dyn Runtime,
        model: &'a Model,
        inputs: BTreeMap<String, Tensor>,
        batch: Batch,
        stage: Stage,
        copies: usize,
    ) -> Self {
        let skeleton = ModelProto { graph: None, ..model.to_proto() };
        let Batch { rows: batch, fixed } = batch;
        Self { runtime, model, skeleton, held: inputs, overrides: Overrides::new(), batch, fixed, stage, copies }
    }

    /// Computes tensors, in one run from what is held, and holds them.
    pub(crate) fn compute(&mut self, wanted: &[&str]) -> Result<(), PruneError> {
        let missing: Vec<&str> = wanted.iter().copied().filter(|w| !self.held.contains_key(*w)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (piece, sources) = self.piece(&missing)?;
        let runner = Runner::new(self.runtime, &piece, self.batch, self.stage, self.copies)?;
        let inputs = self.held.iter().filter(|(name, _)| sources.contains(*name)).map(|(n, t)| (n.as_str(), t)).collect();
        let outputs = runner.run(&inputs, self.fixed)?;
        self.held.extend(missing.iter().map(|m| (*m).to_owned()).zip(outputs));
        Ok(())
    }

    /// A tensor computed before.
    pub(crate) fn get(&self, name: &str) -> Result<&Tensor, PruneError> {
        self.held.get(name).ok_or_else(|| PruneError::Model(format!("tensor `{name}` was not computed").into()))
    }

    /// Forgets whatever none of the tensors still wanted depends on.
    pub(crate) fn release(&mut self, wanted: &[&str]) {
        let (_, sources) = self.reach(wanted);
        self.held.retain(|name, _| sources.contains(name));
    }

    /// Nodes between the held tensors and `wanted`, and the held tensors they start from.
    fn reach(&self, wanted: &[&str]) -> (BTreeSet<usize>, BTreeSet<String>) {
        let (mut nodes, mut sources) = (BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<&str> = wanted.to_vec();
        while let Some(name) = open.pop() {
            if self.held.contains_key(name) {
                sources.insert(name.to_owned());
            } else if let Some(node) = self.model.producer(name)
                && nodes.insert(node.id.0)
            {
                open.extend(node.inputs());
            }
        }
        (nodes, sources)
    }

    fn piece(&self, wanted: &[&str]) -> Result<(Model, BTreeSet<String>), PruneError> {
        let (nodes, sources) = self.reach(wanted);
        let mut graph = GraphProto { name: Some("piece".to_owned()), ..GraphProto::default() };
        let info = |name: &str| {
            let dims = self.held.get(name).map(|t| t.shape()).unwrap_or_default();
            let axis = |(i, &d): (usize, &usize)| if i == 0 && !self.fixed { Dim::Free("rows".to_owned()) } else { Dim::Fixed(d) };
            let mut dims: Vec<Dim> = dims.iter().enumerate().map(axis).collect();
            if let (true, Some(first)) = (self.fixed, dims.first_mut()) {
                *first = Dim::Fixed(self.batch);
            }
            let kind = match self.held.get(name).map(Tensor::data) {
                Some(Element::Int64(_)) => ElementKind::Int64,
                Some(Element::Int32(_)) => ElementKind::Int32,
                Some(Element::Uint8(_)) => ElementKind::Uint8,
                Some(Element::Bool(_)) => ElementKind::Bool,
                Some(Element::Fp32(_) | Element::Fp64(_)) | None => ElementKind::Float,
            };
            value_info(name, kind, Some(&dims))
        };
        graph.input = sources.iter().map(|s| info(s)).collect();
        graph.output = wanted.iter().map(|w| value_info(w, ElementKind::Float, None)).collect();
        graph.node = nodes.iter().filter_map(|&n| self.model.node(pleach_onnx::NodeId(n))).map(|n| n.proto.clone()).collect();
        // A node may be run for one of its outputs while another one is held.
        for output in graph.node.iter_mut().flat_map(|n| &mut n.output).filter(|o| self.held.contains_key(*o)) {
            *output = self.model.free_name(&format!("{output}.again"));
        }
        let used: BTreeSet<&str> = graph.node.iter().flat_map(|n| n.input.iter().map(String::as_str)).collect();
        let constants = self.model.graph().initializer.iter().filter(|t| used.contains(t.name()));
        let mut initializers = Vec::new();
        for tensor in constants {
            match self.overrides.get(tensor.name()) {
                Some((dims, values)) => {
                    let dims = dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
                    initializers.push(pleach_onnx::proto::TensorProto {
                        dims,
                        float_data: values.clone(),
                        raw_data: None,
                        data_type: Some(1),
                        ..tensor.clone()
                    });
                }
                None => initializers.push(tensor.clone()),
            }
        }
        graph.initializer = initializers;
        let proto = ModelProto { graph: Some(graph), ..self.skeleton.clone() };
        Ok((Model::from_proto(proto, &Limits::default()).map_err(model_error)?, sources))
    }
}

/// How many rows a model takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) rows: usize,
    /// The model takes exactly that many.
    pub(crate) fixed: bool,
}

impl Batch {
    /// What the inputs of a model demand, `free` rows where they leave it open.
    pub(crate) fn of(model: &Model, free: usize) -> Self {
        let first = model.inputs().into_iter().find_map(|i| i.dims.and_then(|d| d.into_iter().next()));
        match first {
            Some(Dim::Fixed(rows)) => Self { rows, fixed: true },
            Some(Dim::Free(_)) | None => Self { rows: free, fixed: false },
        }
    }
}
