//! Tensors between the domain and ONNX Runtime. Half precision crosses as single precision, rounded to the nearest on the way in.

use half::f16;
use ort::session::SessionInputValue;
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, TensorElementType, TensorRef, Value, ValueType};
use pleach_domain::runtime::TensorSpec;
use pleach_domain::{Element, ElementType, Tensor};

use crate::error::InferenceError;

/// The inputs or outputs of a session.
#[derive(Clone, Debug)]
pub(crate) struct Ports {
    /// As callers see them.
    pub(crate) specs: Vec<TensorSpec>,
    /// Whether each is half precision inside.
    half: Vec<bool>,
}

impl Ports {
    /// Reads the specifications of a session's inputs or outputs.
    pub(crate) fn read(what: &'static str, outlets: &[Outlet]) -> Result<Self, InferenceError> {
        let mut ports = Self { specs: Vec::new(), half: Vec::new() };
        for outlet in outlets {
            let unsupported = || InferenceError::UnsupportedType { what, name: outlet.name().to_owned(), got: outlet.dtype().to_string() };
            let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { return Err(unsupported()) };
            let element_type = element_type(*ty).ok_or_else(unsupported)?;
            let shape = shape.iter().map(|&axis| usize::try_from(axis).ok()).collect();
            ports.specs.push(TensorSpec { name: outlet.name().to_owned(), element_type, shape });
            ports.half.push(*ty == TensorElementType::Float16);
        }
        Ok(ports)
    }

    /// Each specification, and whether it is half precision inside.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TensorSpec, bool)> {
        self.specs.iter().zip(self.half.iter().copied())
    }
}

fn element_type(ty: TensorElementType) -> Option<ElementType> {
    match ty {
        TensorElementType::Float32 | TensorElementType::Float16 => Some(ElementType::Fp32),
        TensorElementType::Float64 => Some(ElementType::Fp64),
        TensorElementType::Int64 => Some(ElementType::Int64),
        TensorElementType::Int32 => Some(ElementType::Int32),
        TensorElementType::Uint8 => Some(ElementType::Uint8),
        TensorElementType::Bool => Some(ElementType::Bool),
        _ => None,
    }
}

/// A value that ONNX Runtime reads straight from the tensor; booleans and half precision are copied.
pub(crate) fn view(tensor: &Tensor, half: bool) -> Result<SessionInputValue<'_>, ort::Error> {
    fn typed<'a, T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
        shape: &'a [usize],
        data: &'a [T],
    ) -> Result<SessionInputValue<'a>, ort::Error> {
        Ok(TensorRef::from_array_view((shape, data))?.into())
    }
    let shape = tensor.shape();
    match tensor.data() {
        Element::Fp32(v) if half => {
            let halves: Vec<f16> = v.iter().map(|&x| f16::from_f32(x)).collect();
            Ok(Value::from_array((shape, halves))?.into())
        }
        Element::Fp32(v) => typed(shape, v),
        Element::Fp64(v) => typed(shape, v),
        Element::Int64(v) => typed(shape, v),
        Element::Int32(v) => typed(shape, v),
        Element::Uint8(v) => typed(shape, v),
        Element::Bool(v) => {
            let flags: Vec<bool> = v.iter().map(|&b| b != 0).collect();
            Ok(Value::from_array((shape, flags))?.into())
        }
    }
}

/// Copies an output out of ONNX Runtime.
pub(crate) fn copy_out(spec: &TensorSpec, half: bool, value: &DynValue) -> Result<Tensor, InferenceError> {
    fn typed<T: PrimitiveTensorElementType + Clone>(value: &DynValue) -> Result<(Vec<usize>, Vec<T>), InferenceError> {
        let (shape, data) = value.try_extract_tensor::<T>().map_err(InferenceError::ort("reading an output"))?;
        Ok((shape.iter().map(|&axis| usize::try_from(axis).unwrap_or(0)).collect(), data.to_vec()))
    }
    let (shape, data) = match spec.element_type {
        ElementType::Fp32 if half => typed::<f16>(value).map(|(s, v)| (s, Element::Fp32(v.into_iter().map(f16::to_f32).collect())))?,
        ElementType::Fp32 => typed(value).map(|(s, v)| (s, Element::Fp32(v)))?,
        ElementType::Fp64 => typed(value).map(|(s, v)| (s, Element::Fp64(v)))?,
        ElementType::Int64 => typed(value).map(|(s, v)| (s, Element::Int64(v)))?,
        ElementType::Int32 => typed(value).map(|(s, v)| (s, Element::Int32(v)))?,
        ElementType::Uint8 => typed(value).map(|(s, v)| (s, Element::Uint8(v)))?,
        ElementType::Bool => typed::<bool>(value).map(|(s, v)| (s, Element::Bool(v.into_iter().map(u8::from).collect())))?,
    };
    Tensor::new(shape, data).map_err(|source| InferenceError::Output { name: spec.name.clone(), source })
}
