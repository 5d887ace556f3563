//! Models that already compute in integers: their weights are no numbers that least squares could move.

use std::collections::BTreeMap;

use pleach_onnx::Model;

use crate::error::PruneError;

/// Operators that multiply integers.
const INTEGER: [&str; 8] = [
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulNBits",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
];

/// Refuses a model whose layers multiply integers, or floats that are stored as integers.
///
/// # Errors
/// [`PruneError::Unsupported`] with the operators and how many there are.
pub(crate) fn refuse(model: &Model) -> Result<(), PruneError> {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for node in model.nodes() {
        // A scale of one element stands for a number, not for weights.
        let stored = || node.input(0).and_then(|x| model.constant_dims(x)).is_some_and(|d| d.iter().product::<usize>() > 1);
        if INTEGER.contains(&node.op_type()) || node.is("DequantizeLinear") && stored() {
            *found.entry(node.op_type()).or_default() += 1;
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = found.iter().map(|(op, count)| format!("{count} {op}")).collect();
    let got = format!("integer weights ({}): it is already quantised", list.join(", "));
    Err(PruneError::Unsupported { expected: "weights in floating point; prune the model first, and quantise what comes of it", got })
}
