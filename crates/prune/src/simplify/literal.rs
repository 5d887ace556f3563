//! Computed Reshape targets become literals where two measurements at other batches and lengths show what they come to.
//!
//! Exporters compute the target of a Reshape from `Shape` nodes even where it is static but for the batch and the sequence. An axis that
//! never moves is written as its length, one that equals the input's axis of the same place as 0, and one other as -1.

use std::collections::BTreeMap;

use pleach_domain::runtime::Runtime;
use pleach_onnx::{AxisLength, Dim, Model, Node, Patch, Shapes};

use super::{SimplifyError, dead};
use crate::coupling::measure_shapes;

/// Lengths of each input's axes behind the batch axis.
pub(crate) type Lengths = BTreeMap<String, Vec<usize>>;

/// The model with literal targets where they can be, and without what only computed them.
///
/// # Errors
/// [`SimplifyError`] when the runtime does not run the model.
pub(crate) fn literal_targets(model: &Model, lengths: &Lengths, runtime: &dyn Runtime) -> Result<Model, SimplifyError> {
    let computed = |n: &Node<'_>| n.is("Reshape") && n.input(1).is_some_and(|t| model.constant_dims(t).is_none());
    if !model.nodes().any(|n| computed(&n)) {
        return Ok(model.clone());
    }
    let Some(shorter) = shortened(model, lengths) else { return Ok(model.clone()) };
    let measured = [measure_shapes(model, runtime, lengths)?, measure_shapes(model, runtime, &shorter)?];
    let mut patch = Patch::new();
    for node in model.nodes().filter(computed) {
        let Some((output, target)) = node.output(0).zip(target(node, &measured)) else { continue };
        let name = model.free_name(&format!("{output}.target"));
        patch.set_ints(&name, &[target.len()], &target)?;
        patch.set_input(node.id, 1, &name);
    }
    Ok(dead::sweep(&model.apply(&patch)?)?)
}

/// The lengths with every free axis halved; `None` when one is too short for that.
fn shortened(model: &Model, lengths: &Lengths) -> Option<Lengths> {
    let mut shorter = lengths.clone();
    for input in model.inputs() {
        let (Some(dims), Some(own)) = (input.dims, shorter.get_mut(&input.name)) else { continue };
        for (dim, length) in dims.iter().skip(1).zip(own) {
            if matches!(dim, Dim::Free(_)) {
                *length = (*length > 1).then_some(*length / 2)?;
            }
        }
    }
    Some(shorter)
}

fn target(node: Node<'_>, measured: &[Shapes; 2]) -> Option<Vec<i64>> {
    let axes = |tensor: Option<&str>| -> Option<[Vec<AxisLength>; 2]> {
        let [a, b] = measured.each_ref().map(|shapes| tensor.and_then(|t| shapes.axes(t)).map(<[AxisLength]>::to_vec));
        Some([a?, b?])
    };
    let ([in_long, in_short], [out_long, out_short]) = (axes(node.input(0))?, axes(node.output(0))?);
    let mut inferred = 0;
    let mut literal = |(i, (long, short)): (usize, (&AxisLength, &AxisLength))| {
        if long == short && long.per_row == 0 {
            return Some(long.base);
        }
        if node.int("allowzero").unwrap_or(0) == 0 && in_long.get(i) == Some(long) && in_short.get(i) == Some(short) {
            return Some(0);
        }
        inferred += 1;
        (inferred == 1).then_some(-1)
    };
    let target: Vec<i64> = out_long.iter().zip(&out_short).enumerate().map(&mut literal).collect::<Option<_>>()?;
    // A literal 0 would be taken for a copy.
    (out_long.len() == out_short.len() && out_long.iter().all(|axis| axis.per_row != 0 || axis.base != 0)).then_some(target)
}
