//! A loaded model: checks inputs against its signature and runs them.

use ort::session::{Session, SessionInputValue};
use pleach_domain::Tensor;
use pleach_domain::runtime::{LoadedModel, RuntimeError, TensorSpec};

use crate::error::InferenceError;
use crate::tensor::{Ports, copy_out, view};

pub(crate) struct OrtModel {
    session: Session,
    inputs: Ports,
    outputs: Ports,
}

impl OrtModel {
    pub(crate) fn new(session: Session) -> Result<Self, InferenceError> {
        let inputs = input_ports(&session)?;
        let outputs = Ports::read("model output", session.outputs())?;
        Ok(Self { session, inputs, outputs })
    }

    fn call(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, InferenceError> {
        let values = bind(&self.inputs, inputs)?;
        let outputs = self.session.run(values.as_slice()).map_err(InferenceError::ort("running the model"))?;
        self.outputs.iter().zip(outputs.values()).map(|((spec, half), value)| copy_out(spec, half, &value)).collect()
    }
}

impl LoadedModel for OrtModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs.specs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs.specs
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, RuntimeError> {
        Ok(self.call(inputs)?)
    }
}

pub(crate) fn input_ports(session: &Session) -> Result<Ports, InferenceError> {
    Ports::read("model input", session.inputs())
}

/// Lines inputs up in the model's order, checked by name, type and shape.
pub(crate) fn bind<'a>(ports: &Ports, inputs: &[(&str, &'a Tensor)]) -> Result<Vec<SessionInputValue<'a>>, InferenceError> {
    let specs = &ports.specs;
    let names = || specs.iter().map(|s| s.name.clone()).collect();
    if let Some((name, _)) = inputs.iter().find(|(name, _)| specs.iter().all(|s| s.name != *name)) {
        return Err(InferenceError::InputUnknown { name: shortened(name), expected: names() });
    }
    ports
        .iter()
        .map(|(spec, half)| {
            let found = inputs.iter().find(|(name, _)| *name == spec.name);
            let (_, tensor) = found.ok_or_else(|| InferenceError::InputMissing { name: spec.name.clone(), expected: names() })?;
            check(spec, tensor)?;
            view(tensor, half).map_err(InferenceError::ort("handing an input over"))
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
