//! How far two lists of outputs are apart.

use pleach_domain::{Element, Tensor};
use pleach_onnx::Model;

use super::ProofError;

/// Operators that may stand between a Sigmoid and an output without changing its values.
const MOVES: [&str; 8] = ["Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice"];

/// For each output of a model the least that its differences are relative to: 1 for probabilities of a Sigmoid, which are rounded as
/// numbers near 1/2 are, however small they are; 0 for all others.
pub(super) fn least_scales(model: &Model) -> Vec<f64> {
    let least = |name: &str| {
        let mut name = name;
        while let Some(node) = model.producer(name).filter(|n| n.domain().is_empty()) {
            match (node.op_type(), node.input(0)) {
                ("Sigmoid", _) => return 1.0,
                (op, Some(input)) if MOVES.contains(&op) => name = input,
                _ => return 0.0,
            }
        }
        0.0
    };
    model.graph().output.iter().map(|output| least(output.name())).collect()
}

/// The worst difference of two lists of outputs, relative to the largest value of each output (at least `least_scales`); infinite
/// where one is not finite and the other is, or is another. Outputs that are no floats must be equal.
///
/// # Errors
/// [`ProofError::Outputs`] where two outputs differ in type or shape.
pub(super) fn difference(left: &[Tensor], right: &[Tensor], least_scales: &[f64]) -> Result<f64, ProofError> {
    let mut worst = if left.len() == right.len() { 0.0f64 } else { f64::INFINITY };
    for (index, (a, b)) in left.iter().zip(right).enumerate() {
        if a.shape() != b.shape() || a.element_type() != b.element_type() {
            return Err(ProofError::Outputs { index, left: a.shape().to_vec(), right: b.shape().to_vec() });
        }
        let least = least_scales.get(index).copied().unwrap_or(0.0);
        worst = worst.max(match (a.data(), b.data()) {
            (Element::Fp32(x), Element::Fp32(y)) => gap(x.iter().map(|&v| v.into()), y.iter().map(|&v| v.into()), least),
            (Element::Fp64(x), Element::Fp64(y)) => gap(x.iter().copied(), y.iter().copied(), least),
            (x, y) if x == y => 0.0,
            _ => f64::INFINITY,
        });
    }
    Ok(worst)
}

fn gap(x: impl Iterator<Item = f64> + Clone, y: impl Iterator<Item = f64>, least: f64) -> f64 {
    let scale = x.clone().map(f64::abs).filter(|v| v.is_finite()).fold(least.max(f64::MIN_POSITIVE), f64::max);
    let relative = |(p, q): (f64, f64)| {
        if p == q || (p.is_nan() && q.is_nan()) {
            return 0.0;
        }
        let gap = (p - q).abs() / scale;
        if gap.is_nan() { f64::INFINITY } else { gap }
    };
    x.zip(y).map(relative).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder};

    use super::*;

    fn worst(x: &[f32], y: &[f32]) -> f64 {
        let tensor = |v: &[f32]| Tensor::fp32(vec![v.len()], v.to_vec()).unwrap();
        difference(&[tensor(x)], &[tensor(y)], &[]).unwrap()
    }

    #[test]
    fn differences_are_relative_to_the_largest_value() {
        assert!((worst(&[1.0, -4.0], &[1.0, -3.0]) - 0.25).abs() < 1e-12);
        assert!(worst(&[0.0, 0.0], &[0.0, -0.0]).abs() < 1e-12);
    }

    #[test]
    fn values_that_are_no_numbers_agree_only_with_their_like() {
        assert!(worst(&[f32::NAN, f32::INFINITY, 1.0], &[f32::NAN, f32::INFINITY, 1.0]).abs() < 1e-12);
        assert!(worst(&[f32::INFINITY], &[f32::NEG_INFINITY]).is_infinite());
        assert!(worst(&[f32::NAN], &[1.0]).is_infinite());
        assert!(worst(&[1.0], &[f32::NAN]).is_infinite());
    }

    #[test]
    fn other_elements_must_be_equal() {
        let ints = |v: i64| Tensor::int64(vec![1], vec![v]).unwrap();
        assert!(difference(&[ints(3)], &[ints(3)], &[]).unwrap().abs() < 1e-12);
        assert!(difference(&[ints(3)], &[ints(4)], &[]).unwrap().is_infinite());
        assert!(difference(&[ints(3)], &[], &[]).unwrap().is_infinite());
        let floats = Tensor::fp32(vec![1], vec![3.0]).unwrap();
        assert!(matches!(difference(&[ints(3)], &[floats], &[]), Err(ProofError::Outputs { index: 0, .. })));
    }

    #[test]
    fn small_probabilities_of_a_sigmoid_are_compared_as_numbers_up_to_one() {
        let mut graph = GraphBuilder::new("sigmoid");
        let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1), Dim::Fixed(4)]);
        let y = graph.node("Sigmoid", &[&x], vec![]);
        let y = graph.node("Flatten", &[&y], vec![]);
        graph.output(&y);
        let z = graph.node("Relu", &[&x], vec![]);
        graph.output(&z);
        assert_eq!(least_scales(&graph.build().unwrap()), [1.0, 0.0]);
        let tensor = |v: f32| [Tensor::fp32(vec![1], vec![v]).unwrap()];
        let gap = |least: f64| difference(&tensor(1e-4), &tensor(1.01e-4), &[least]).unwrap();
        assert!(gap(1.0) < 2e-6 && gap(0.0) > 5e-3);
    }
}
