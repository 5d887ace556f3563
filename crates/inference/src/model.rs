//! A loaded model: checks inputs against its signature and runs them.

use ort::session::{Session, SessionInputValue};
use pleach_domain::Tensor;
use pleach_domain::runtime::{LoadedModel, RuntimeError, TensorSpec};

use crate::error::InferenceError;
use crate::tensor::{copy_out, spec, view};

pub(crate) struct OrtModel {
    session: Session,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

impl OrtModel {
    pub(crate) fn new(session: Session) -> Result<Self, InferenceError> {
        let inputs = input_specs(&session)?;
        let outputs = session.outputs().iter().map(|o| spec("model output", o)).collect::<Result<_, _>>()?;
        Ok(Self { session, inputs, outputs })
    }

    fn call(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, InferenceError> {
        let values = bind(&self.inputs, inputs)?;
        let outputs = self.session.run(values.as_slice()).map_err(InferenceError::ort("running the model"))?;
        self.outputs.iter().zip(outputs.values()).map(|(spec, value)| copy_out(spec, &value)).collect()
    }
}

impl LoadedModel for OrtModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, RuntimeError> {
        Ok(self.call(inputs)?)
    }
}

pub(crate) fn input_specs(session: &Session) -> Result<Vec<TensorSpec>, InferenceError> {
    session.inputs().iter().map(|i| spec("model input", i)).collect()
}

/// Lines inputs up in the model's order, checked by name, type and shape.
pub(crate) fn bind<'a>(specs: &[TensorSpec], inputs: &[(&str, &'a Tensor)]) -> Result<Vec<SessionInputValue<'a>>, InferenceError> {
    let names = || specs.iter().map(|s| s.name.clone()).collect();
    if let Some((name, _)) = inputs.iter().find(|(name, _)| specs.iter().all(|s| s.name != *name)) {
        return Err(InferenceError::InputUnknown { name: shortened(name), expected: names() });
    }
    specs
        .iter()
        .map(|spec| {
            let found = inputs.iter().find(|(name, _)| *name == spec.name);
            let (_, tensor) = found.ok_or_else(|| InferenceError::InputMissing { name: spec.name.clone(), expected: names() })?;
            check(spec, tensor)?;
            view(tensor).map_err(InferenceError::ort("handing an input over"))
        })
        .collect()
}

fn check(spec: &TensorSpec, tensor: &Tensor) -> Result<(), InferenceError> {
    if tensor.element_type() != spec.element_type {
        let (got, expected) = (tensor.element_type(), spec.element_type);
        return Err(InferenceError::InputType { name: spec.name.clone(), got, expected });
    }
    let fits = tensor.shape().len() == spec.shape.len()
        && tensor.shape().iter().zip(&spec.shape).all(|(&got, expected)| expected.is_none_or(|e| e == got));
    if fits {
        return Ok(());
    }
    let axes: Vec<_> = spec.shape.iter().map(|a| a.map_or("?".to_owned(), |a| a.to_string())).collect();
    let expected = format!("[{}]", axes.join(", "));
    Err(InferenceError::InputShape { name: spec.name.clone(), got: tensor.shape().to_vec(), expected })
}

fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}
