//! Tensors between the domain and ONNX Runtime.

use ort::session::SessionInputValue;
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, TensorElementType, TensorRef, Value, ValueType};
use pleach_domain::runtime::TensorSpec;
use pleach_domain::{Element, ElementType, Tensor};

use crate::error::InferenceError;

/// The specification of a session's input or output.
pub(crate) fn spec(what: &'static str, outlet: &Outlet) -> Result<TensorSpec, InferenceError> {
    let unsupported = || InferenceError::UnsupportedType { what, name: outlet.name().to_owned(), got: outlet.dtype().to_string() };
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { return Err(unsupported()) };
    let element_type = element_type(*ty).ok_or_else(unsupported)?;
    let shape = shape.iter().map(|&axis| usize::try_from(axis).ok()).collect();
    Ok(TensorSpec { name: outlet.name().to_owned(), element_type, shape })
}

fn element_type(ty: TensorElementType) -> Option<ElementType> {
    match ty {
        TensorElementType::Float32 => Some(ElementType::Fp32),
        TensorElementType::Float64 => Some(ElementType::Fp64),
        TensorElementType::Int64 => Some(ElementType::Int64),
        TensorElementType::Int32 => Some(ElementType::Int32),
        TensorElementType::Uint8 => Some(ElementType::Uint8),
        TensorElementType::Bool => Some(ElementType::Bool),
        _ => None,
    }
}

/// A value that ONNX Runtime reads straight from the tensor; booleans are copied.
pub(crate) fn view(tensor: &Tensor) -> Result<SessionInputValue<'_>, ort::Error> {
    fn typed<'a, T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
        shape: &'a [usize],
        data: &'a [T],
    ) -> Result<SessionInputValue<'a>, ort::Error> {
        Ok(TensorRef::from_array_view((shape, data))?.into())
    }
    let shape = tensor.shape();
    match tensor.data() {
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
pub(crate) fn copy_out(spec: &TensorSpec, value: &DynValue) -> Result<Tensor, InferenceError> {
    fn typed<T: PrimitiveTensorElementType + Clone>(value: &DynValue) -> Result<(Vec<usize>, Vec<T>), InferenceError> {
        let (shape, data) = value.try_extract_tensor::<T>().map_err(InferenceError::ort("reading an output"))?;
        Ok((shape.iter().map(|&axis| usize::try_from(axis).unwrap_or(0)).collect(), data.to_vec()))
    }
    let (shape, data) = match spec.element_type {
        ElementType::Fp32 => typed(value).map(|(s, v)| (s, Element::Fp32(v)))?,
        ElementType::Fp64 => typed(value).map(|(s, v)| (s, Element::Fp64(v)))?,
        ElementType::Int64 => typed(value).map(|(s, v)| (s, Element::Int64(v)))?,
        ElementType::Int32 => typed(value).map(|(s, v)| (s, Element::Int32(v)))?,
        ElementType::Uint8 => typed(value).map(|(s, v)| (s, Element::Uint8(v)))?,
        ElementType::Bool => typed::<bool>(value).map(|(s, v)| (s, Element::Bool(v.into_iter().map(u8::from).collect())))?,
    };
    Tensor::new(shape, data).map_err(|source| InferenceError::Output { name: spec.name.clone(), source })
}
