//! How far two lists of outputs are apart.

use pleach_domain::{Element, Tensor};

use super::ProofError;

/// The worst difference of two lists of outputs, relative to the largest value of each output; infinite where one is not finite
/// and the other is, or is another. Outputs that are no floats must be equal.
///
/// # Errors
/// [`ProofError::Outputs`] where two outputs differ in type or shape.
pub(super) fn difference(left: &[Tensor], right: &[Tensor]) -> Result<f64, ProofError> {
    let mut worst = if left.len() == right.len() { 0.0f64 } else { f64::INFINITY };
    for (index, (a, b)) in left.iter().zip(right).enumerate() {
        if a.shape() != b.shape() || a.element_type() != b.element_type() {
            return Err(ProofError::Outputs { index, left: a.shape().to_vec(), right: b.shape().to_vec() });
        }
        worst = worst.max(match (a.data(), b.data()) {
            (Element::Fp32(x), Element::Fp32(y)) => gap(x.iter().map(|&v| v.into()), y.iter().map(|&v| v.into())),
            (Element::Fp64(x), Element::Fp64(y)) => gap(x.iter().copied(), y.iter().copied()),
            (x, y) if x == y => 0.0,
            _ => f64::INFINITY,
        });
    }
    Ok(worst)
}

fn gap(x: impl Iterator<Item = f64> + Clone, y: impl Iterator<Item = f64>) -> f64 {
    let scale = x.clone().map(f64::abs).filter(|v| v.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
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
    use super::*;

    fn worst(x: &[f32], y: &[f32]) -> f64 {
        let tensor = |v: &[f32]| Tensor::fp32(vec![v.len()], v.to_vec()).unwrap();
        difference(&[tensor(x)], &[tensor(y)]).unwrap()
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
        assert!(difference(&[ints(3)], &[ints(3)]).unwrap().abs() < 1e-12);
        assert!(difference(&[ints(3)], &[ints(4)]).unwrap().is_infinite());
        assert!(difference(&[ints(3)], &[]).unwrap().is_infinite());
        let floats = Tensor::fp32(vec![1], vec![3.0]).unwrap();
        assert!(matches!(difference(&[ints(3)], &[floats]), Err(ProofError::Outputs { index: 0, .. })));
    }
}
