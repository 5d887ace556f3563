//! Low rank: a layer as two smaller ones.
//!
//! W `[columns, outputs]` with the centred Gram matrix S of its columns puts out W'S W; with U the leading eigenvectors of that, the
//! product (W U) Uᵀ is the matrix of that rank whose output is nearest (principal components of the responses, Zhang et al. 2015).
//! Its first factor keeps the kernel, the second is 1 x 1.

use faer::Mat;
use pleach_onnx::builder::{attribute, node};
use pleach_onnx::{Model, OnnxError, Patch};

use crate::error::PruneError;
use crate::linear::{add_product, leading_eigenvectors};
use crate::network::{Kind, Layer, stored};

/// Two factors, `[columns, rank]` and `[rank, outputs]`.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    first: Mat<f64>,
    second: Mat<f64>,
}

impl Factors {
    /// The nearest product of a rank, under a Gram matrix of the columns.
    ///
    /// # Errors
    /// [`PruneError::Numerics`] when the responses hold no finite numbers.
    pub(crate) fn of(weights: &Mat<f64>, gram: &Mat<f64>, rank: usize) -> Result<Self, PruneError> {
        let outputs = weights.ncols();
        let mut spread = Mat::zeros(weights.nrows(), outputs);
        add_product(&mut spread, 1.0, gram, weights);
        let mut responses = Mat::zeros(outputs, outputs);
        add_product(&mut responses, 1.0, &weights.transpose().to_owned(), &spread);
        let basis = leading_eigenvectors(&responses, rank)?;
        let mut first = Mat::zeros(weights.nrows(), basis.ncols());
        add_product(&mut first, 1.0, weights, &basis);
        Ok(Self { first, second: basis.transpose().to_owned() })
    }

    /// Factors of the right shapes, whatever they make: the first columns, and what mixes them evenly.
    pub(crate) fn leading(weights: &Mat<f64>, rank: usize) -> Self {
        let rank = rank.min(weights.ncols());
        let second = Mat::from_fn(rank, weights.ncols(), |_, _| 1.0 / rank.max(1) as f64);
        Self { first: weights.subcols(0, rank).to_owned(), second }
    }

    /// The matrix they stand for.
    pub(crate) fn product(&self) -> Mat<f64> {
        let mut product = Mat::zeros(self.first.nrows(), self.second.ncols());
        add_product(&mut product, 1.0, &self.first, &self.second);
        product
    }
}

/// Puts two layers in the place of one, in a patch to a model whose node ids are the network's.
///
/// # Errors
/// [`OnnxError`] when the model is not the network's.
pub(crate) fn split(model: &Model, layer: &Layer, factors: &Factors, patch: &mut Patch) -> Result<(), OnnxError> {
    let old = model.node(layer.node).ok_or(OnnxError::NoSuchNode(layer.node))?;
    let (rank, output) = (factors.first.ncols(), old.output(0).unwrap_or_default());
    let between = model.free_name(&format!("{output}.factor"));
    let second = model.free_name(&format!("{}.factor", layer.weight));
    let dims = model.constant_dims(&layer.weight).unwrap_or_default();
    let (mut first_dims, second_dims, outputs) = match layer.kind {
        Kind::Conv { .. } => (dims.clone(), [&[factors.second.ncols(), rank][..], &vec![1; dims.len() - 2]].concat(), 0),
        Kind::Linear { transposed: true } => (dims.clone(), vec![factors.second.ncols(), rank], 0),
        Kind::Linear { transposed: false } => (dims.clone(), vec![rank, factors.second.ncols()], 1),
    };
    if let Some(length) = first_dims.get_mut(outputs) {
        *length = rank;
    }
    patch.set_floats(model, &layer.weight, &first_dims, &stored(layer, &factors.first))?;
    patch.set_floats(model, &second, &second_dims, &stored(layer, &factors.second))?;
    let mut one = old.proto.clone();
    one.input.truncate(2);
    one.output = vec![between.clone()];
    let mut inputs = vec![between.as_str(), second.as_str()];
    inputs.extend(old.input(2));
    let kernel = || attribute("kernel_shape", vec![1i64; dims.len() - 2]);
    let attributes = match layer.kind {
        Kind::Conv { .. } => vec![kernel()],
        Kind::Linear { transposed } if old.is("Gemm") => vec![attribute("transB", i64::from(transposed))],
        Kind::Linear { .. } => vec![],
    };
    let two = node(old.op_type(), &format!("{between}.second"), &inputs, output, attributes);
    patch.replace_node(layer.node, vec![one, two]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::gram;
    use crate::linear::tests::noise;

    #[test]
    fn keeps_the_directions_in_which_the_outputs_move() {
        // Column 0 hardly moves: rank 1 keeps what column 1 does although its weights are smaller.
        let mut x = noise(500, 2, 3);
        x.data.chunks_mut(2).for_each(|row| row[0] *= 1e-3);
        let w = Mat::from_fn(2, 2, |i, j| if i == j { [5.0, 1.0][i] } else { 0.0 });
        let product = Factors::of(&w, &gram(x.view(), None), 1).unwrap().product();
        assert!(product[(0, 0)].abs() < 0.1 && (product[(1, 1)] - 1.0).abs() < 1e-3, "{product:?}");
    }
}
