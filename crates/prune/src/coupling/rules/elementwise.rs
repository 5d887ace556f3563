//! Operators that work element by element.

use pleach_onnx::Node;

use super::{Axis, Trace};

/// Operators that work element by element on one tensor.
pub(super) const UNARY: [&str; 46] = [
    "Abs",
    "Acos",
    "Asin",
    "Asinh",
    "Atanh",
    "BitwiseNot",
    "Cosh",
    "Sinh",
    "Acosh",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Atan",
];

/// Operators that broadcast their inputs against each other, element by element.
pub(super) const BROADCAST: [&str; 24] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "Mean",
    "Sum",
    "Where",
    "PRelu",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Mod",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
];

impl<'a> Trace<'a> {
    pub(super) fn unary(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        for name in node.outputs() {
            self.tensors.insert(name.to_owned(), axes.clone());
        }
        Some(())
    }

    pub(super) fn broadcast(&mut self, node: Node<'a>) -> Option<()> {
        let shape = self.dims(node.output(0)?)?;
        let inputs: Vec<(&str, Vec<usize>)> = node.inputs().map(|name| Some((name, self.dims(name)?))).collect::<Option<_>>()?;
        let mut outs = Vec::with_capacity(shape.len());
        for (axis, &length) in shape.iter().enumerate() {
            let mut out: Option<Axis> = None;
            // Activations first, so that constants take the axes of what they meet.
            for constants in [false, true] {
                for (name, dims) in &inputs {
                    let Some(at) = (axis + dims.len()).checked_sub(shape.len()).filter(|&at| dims.get(at) == Some(&length)) else {
                        continue;
                    };
                    if self.root(name).is_some() != constants {
                        continue;
                    }
                    match &out {
                        Some(out) => self.bind_or_unify(name, at, &out.clone(), node)?,
                        None => out = Some(self.axes(name)?.get(at)?.clone()),
                    }
                }
            }
            outs.push(out?);
        }
        self.set(node, outs)
    }
}
