//! Measures the shapes of every tensor by running a probe of the model at two batch sizes.

use std::collections::BTreeMap;

use pleach_domain::runtime::{LoadedModel, Optimization, Runtime};
use pleach_domain::{Element, Tensor};
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::{Dim, Model, ShapeProbe, Shapes, ValueInfo};

use super::CouplingError;

/// Batch sizes at which shapes are measured.
pub const PROBE_ROWS: [usize; 2] = [2, 3];

/// Measures the shapes of every tensor of a model. `examples` gives, by input, the axis lengths behind the batch axis; it is
/// needed only where the model leaves them free.
///
/// # Errors
/// [`CouplingError`] when an input cannot be made or the runtime refuses the probe.
pub fn measure_shapes(model: &Model, runtime: &dyn Runtime, examples: &BTreeMap<String, Vec<usize>>) -> Result<Shapes, CouplingError> {
    let mut probe = LoadedProbe::new(model, runtime)?;
    let [small, large] = PROBE_ROWS;
    if !model.inputs().iter().any(free_batch) {
        return probe.measure_fixed(&feed(model, examples, small)?);
    }
    probe.measure([&feed(model, examples, small)?, &feed(model, examples, large)?])
}

/// Inputs for one run, by name.
pub type Feed = Vec<(String, Tensor)>;

/// Zeros for every input at a batch size.
///
/// # Errors
/// [`CouplingError`] when an input cannot be made.
pub(crate) fn feed(model: &Model, examples: &BTreeMap<String, Vec<usize>>, rows: usize) -> Result<Feed, CouplingError> {
    model.inputs().into_iter().map(|input| Ok((input.name.clone(), zeros(&input, examples.get(&input.name), rows)?))).collect()
}

/// A model's shape probe, loaded: measures the same model on inputs of several shapes.
pub struct LoadedProbe {
    probe: ShapeProbe,
    loaded: Box<dyn LoadedModel>,
}

impl LoadedProbe {
    /// Builds and loads the probe of a model.
    ///
    /// # Errors
    /// [`CouplingError`] when the runtime refuses it.
    pub fn new(model: &Model, runtime: &dyn Runtime) -> Result<Self, CouplingError> {
        let load = |probe: ShapeProbe| match runtime.load(&probe.model.encode(), Optimization::Disabled) {
            Ok(loaded) => Ok(Self { probe, loaded }),
            Err(error) => Err(CouplingError::Runtime(error)),
        };
        load(ShapeProbe::new(model)?).or_else(|_| load(ShapeProbe::with_weights(model)?))
    }

    /// Measures with inputs of the two batch sizes [`PROBE_ROWS`].
    ///
    /// # Errors
    /// [`CouplingError`] when the model does not run on them.
    pub fn measure(&mut self, inputs: [&[(String, Tensor)]; 2]) -> Result<Shapes, CouplingError> {
        let [small, large] = PROBE_ROWS;
        let runs = [self.run(inputs[0])?, self.run(inputs[1])?];
        Ok(self.probe.read((small, &runs[0]), (large, &runs[1]))?)
    }

    /// Measures a model whose batch does not move: every axis is static.
    ///
    /// # Errors
    /// [`CouplingError`] when the model does not run on these inputs.
    pub fn measure_fixed(&mut self, inputs: &[(String, Tensor)]) -> Result<Shapes, CouplingError> {
        let run = self.run(inputs)?;
        Ok(self.probe.read((1, &run), (1, &run))?)
    }

    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<Vec<i64>>, CouplingError> {
        let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let outputs = self.loaded.run(&named).map_err(CouplingError::Runtime)?;
        Ok(outputs.iter().map(|tensor| tensor.as_int64().unwrap_or_default().to_vec()).collect())
    }
}

fn free_batch(input: &ValueInfo) -> bool {
    matches!(input.dims.as_deref().and_then(<[Dim]>::first), Some(Dim::Free(_)))
}

/// An input of zeros at a batch size.
fn zeros(input: &ValueInfo, example: Option<&Vec<usize>>, rows: usize) -> Result<Tensor, CouplingError> {
    let wrong_type = || CouplingError::InputType { input: input.name.clone(), element_type: input.element_type };
    let dims = input.dims.as_ref().ok_or_else(wrong_type)?;
    let mut shape = Vec::with_capacity(dims.len());
    for (axis, dim) in dims.iter().enumerate() {
        shape.push(match (dim, axis) {
            (Dim::Fixed(length), _) => *length,
            (Dim::Free(_), 0) => rows,
            (Dim::Free(_), _) => {
                let length = example.and_then(|e| e.get(axis - 1)).copied();
                length.ok_or_else(|| CouplingError::FreeAxis { input: input.name.clone(), axis })?
            }
        });
    }
    let count = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).filter(|&n| n <= 1 << 28).unwrap_or(0);
    let data = match DataType::try_from(input.element_type).map_err(|_| wrong_type())? {
        DataType::Float | DataType::Float16 => Element::Fp32(vec![0.0; count]),
        DataType::Double => Element::Fp64(vec![0.0; count]),
        DataType::Int64 => Element::Int64(vec![0; count]),
        DataType::Int32 => Element::Int32(vec![0; count]),
        DataType::Uint8 => Element::Uint8(vec![0; count]),
        DataType::Bool => Element::Bool(vec![0; count]),
        _ => return Err(wrong_type()),
    };
    Ok(Tensor::new(shape, data)?)
}
