//! Element-wise magnitude pruning: single weights below a threshold become zero.
//!
//! It makes what a file compresses to smaller, and nothing faster: kernels for dense matrices multiply zeros like anything else
//! (Han et al. 2015, "Learning both Weights and Connections").

use pleach_onnx::{Model, OnnxError, Patch};

/// A model whose layers' weights w with |w| < `threshold` are zero; biases and other constants stay.
///
/// # Errors
/// What validation finds in the changed graph.
pub(crate) fn zero_below(model: &Model, threshold: f32) -> Result<Model, OnnxError> {
    let mut patch = Patch::new();
    for node in model.nodes().filter(|n| ["Conv", "ConvTranspose", "Gemm", "MatMul"].contains(&n.op_type())) {
        for name in node.inputs().take(2) {
            let Some((dims, mut values)) = model.floats(name).filter(|(dims, _)| dims.len() > 1) else { continue };
            zero(&mut values, threshold);
            patch.set_floats(model, name, &dims, &values)?;
        }
    }
    model.apply(&patch)
}

fn zero(values: &mut [f32], threshold: f32) {
    values.iter_mut().filter(|w| w.abs() < threshold).for_each(|w| *w = 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder};

    #[test]
    fn of_1_2_and_a_tenth_a_threshold_of_one_half_keeps_1_and_2() {
        let mut values = [1.0, 2.0, 0.1];
        zero(&mut values, 0.5);
        assert_eq!(values, [1.0, 2.0, 0.0]);
    }

    #[test]
    fn only_weights_of_layers_are_touched() {
        let mut graph = GraphBuilder::new("g");
        let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1), Dim::Fixed(2)]);
        let w = graph.floats("w", &[2, 2], &[0.1, -0.6, 0.4, -0.4]);
        let b = graph.floats("b", &[2], &[0.1, 0.1]);
        let y = graph.node("Gemm", &[&x, &w, &b], vec![]);
        graph.output(&y);
        let model = zero_below(&graph.build().unwrap(), 0.5).unwrap();
        assert_eq!(model.floats("w").unwrap().1, [0.0, -0.6, 0.0, 0.0]);
        assert_eq!(model.floats("b").unwrap().1, [0.1, 0.1]);
    }
}
