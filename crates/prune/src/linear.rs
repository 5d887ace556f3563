//! Dense linear algebra for statistics and solves: Gram matrices, Cholesky factors.
//!
//! Products run in single precision over short chunks of rows and are summed in double precision. Work is cut into fixed
//! panels, each summed in one order, so results are the same bits whatever the number of threads.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::evd;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Spec};
use rayon::prelude::*;

use crate::error::PruneError;

/// Rows multiplied in single precision before their products are added in double precision.
const CHUNK_ROWS: usize = 256;
/// Columns of a panel.
const PANEL: usize = 128;

/// A matrix of `rows` samples, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rows {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: Vec<f32>,
}

impl Rows {
    pub(crate) fn new(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { rows, cols, data }
    }

    pub(crate) fn row(&self, index: usize) -> &[f32] {
        self.data.get(index * self.cols..(index + 1) * self.cols).unwrap_or_default()
    }

    /// All rows, borrowed.
    pub(crate) fn view(&self) -> View<'_> {
        self.view_of(0, self.rows)
    }

    /// Rows `start..end`, borrowed.
    pub(crate) fn view_of(&self, start: usize, end: usize) -> View<'_> {
        View { rows: end - start, cols: self.cols, data: self.data.get(start * self.cols..end * self.cols).unwrap_or_default() }
    }

    /// Rows `start..end`.
    pub(crate) fn part(&self, start: usize, end: usize) -> Self {
        self.view_of(start, end).to_rows()
    }

    /// The sum with rows of the same shape, if there are any.
    pub(crate) fn plus(mut self, other: Option<View<'_>>) -> Self {
        if let Some(other) = other {
            self.data.iter_mut().zip(other.data).for_each(|(a, b)| *a += b);
        }
        self
    }

    /// Subtracts one value from each column.
    pub(crate) fn shift(&mut self, by: &[f64]) {
        for row in self.data.chunks_mut(self.cols.max(1)) {
            row.iter_mut().zip(by).for_each(|(x, &m)| *x -= m as f32);
        }
    }
}

/// Some rows of a matrix of samples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: &'a [f32],
}

impl<'a> View<'a> {
    fn matrix(self) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice(self.data, self.rows, self.cols)
    }

    pub(crate) fn to_rows(self) -> Rows {
        Rows::new(self.rows, self.cols, self.data.to_vec())
    }

    /// The columns `keep`, in that order.
    pub(crate) fn columns(self, keep: &[usize]) -> Rows {
        let data = self.data.chunks(self.cols.max(1)).flat_map(|row| keep.iter().map(|&c| row.get(c).copied().unwrap_or(0.0))).collect();
        Rows::new(self.rows, keep.len(), data)
    }

    /// The difference from rows of the same shape, if there are any.
    pub(crate) fn minus(self, other: Option<View<'_>>) -> Rows {
        let mut rows = self.to_rows();
        if let Some(other) = other {
            rows.data.iter_mut().zip(other.data).for_each(|(a, b)| *a -= b);
        }
        rows
    }

    /// Mean of each column, of samples that weigh `weights` (all 1 when there are none).
    pub(crate) fn means(self, weights: Option<&[f32]>) -> Vec<f64> {
        let mut sums = vec![0.0; self.cols];
        let mut total = 0.0;
        for (i, row) in self.data.chunks(self.cols.max(1)).enumerate() {
            let weight = weights.and_then(|w| w.get(i)).map_or(1.0, |&w| f64::from(w));
            total += weight;
            sums.iter_mut().zip(row).for_each(|(s, &x)| *s += weight * f64::from(x));
        }
        sums.iter_mut().for_each(|s| *s /= f64::max(total, f64::MIN_POSITIVE));
        sums
    }
}

/// `aᵀ diag(weights) b`, `[a.cols, b.cols]`; the samples weigh 1 when there are no weights.
pub(crate) fn cross(a: View<'_>, b: View<'_>, weights: Option<&[f32]>) -> Mat<f64> {
    let tasks: Vec<_> = panels(a.cols).flat_map(|i| panels(b.cols).map(move |j| (i, j))).collect();
    let mut out = Mat::zeros(a.cols, b.cols);
    for ((i, j), block) in tasks.par_iter().map(|&t| (t, panel(a, b, weights, t.0, t.1))).collect::<Vec<_>>() {
        out.as_mut().submatrix_mut(i.0, j.0, i.1, j.1).copy_from(&block);
    }
    out
}

/// `aᵀ diag(weights) a`, symmetric `[a.cols, a.cols]`.
pub(crate) fn gram(a: View<'_>, weights: Option<&[f32]>) -> Mat<f64> {
    let tasks: Vec<_> = panels(a.cols).flat_map(|i| panels(a.cols).map(move |j| (i, j))).filter(|(i, j)| i.0 >= j.0).collect();
    let mut out = Mat::zeros(a.cols, a.cols);
    for ((i, j), block) in tasks.par_iter().map(|&t| (t, panel(a, a, weights, t.0, t.1))).collect::<Vec<_>>() {
        out.as_mut().submatrix_mut(i.0, j.0, i.1, j.1).copy_from(&block);
        if i.0 != j.0 {
            out.as_mut().submatrix_mut(j.0, i.0, j.1, i.1).copy_from(block.transpose());
        }
    }
    out
}

/// `x w + bias`, one row of the result for each row of `x`; `w` is `[x.cols, outputs]`.
pub(crate) fn apply(x: View<'_>, w: &Mat<f64>, bias: &[f64]) -> Rows {
    let cols = w.ncols();
    let w = Mat::from_fn(w.nrows(), cols, |i, j| w[(i, j)] as f32);
    let mut data = vec![0.0f32; x.rows * cols];
    data.par_chunks_mut((CHUNK_ROWS * cols).max(1)).enumerate().for_each(|(chunk, out)| {
        for row in out.chunks_mut(cols.max(1)) {
            row.iter_mut().zip(bias).for_each(|(o, &b)| *o = b as f32);
        }
        let rows = out.len() / cols.max(1);
        let part = x.matrix().subrows(chunk * CHUNK_ROWS, rows);
        matmul(faer::MatMut::from_row_major_slice_mut(out, rows, cols), Accum::Add, part, w.as_ref(), 1.0f32, Par::Seq);
    });
    Rows::new(x.rows, cols, data)
}

fn panels(cols: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    (0..cols.div_ceil(PANEL)).map(move |p| (p * PANEL, PANEL.min(cols - p * PANEL)))
}

fn panel(a: View<'_>, b: View<'_>, weights: Option<&[f32]>, i: (usize, usize), j: (usize, usize)) -> Mat<f64> {
    let mut sum = Mat::<f64>::zeros(i.1, j.1);
    let mut part = Mat::<f32>::zeros(i.1, j.1);
    for start in (0..a.rows).step_by(CHUNK_ROWS) {
        let rows = CHUNK_ROWS.min(a.rows - start);
        let left = a.matrix().submatrix(start, i.0, rows, i.1);
        let right = b.matrix().submatrix(start, j.0, rows, j.1);
        match weights {
            None => matmul(part.as_mut(), Accum::Replace, left.transpose(), right, 1.0f32, Par::Seq),
            Some(weights) => {
                let weighted = Mat::<f32>::from_fn(rows, j.1, |r, c| right[(r, c)] * weights[start + r]);
                matmul(part.as_mut(), Accum::Replace, left.transpose(), weighted.as_ref(), 1.0f32, Par::Seq);
            }
        }
        for col in 0..j.1 {
            for row in 0..i.1 {
                sum[(row, col)] += f64::from(part[(row, col)]);
            }
        }
    }
    sum
}

/// `c + alpha a b` in double precision, on the calling thread.
pub(crate) fn add_product(c: &mut Mat<f64>, alpha: f64, a: &Mat<f64>, b: &Mat<f64>) {
    matmul(c.as_mut(), Accum::Add, a.as_ref(), b.as_ref(), alpha, Par::Seq);
}

/// Rows and columns `index` of a square matrix.
pub(crate) fn principal(a: &Mat<f64>, index: &[usize]) -> Mat<f64> {
    Mat::from_fn(index.len(), index.len(), |i, j| a[(index[i], index[j])])
}

/// Rows `index` of a matrix.
pub(crate) fn rows_of(a: &Mat<f64>, index: &[usize]) -> Mat<f64> {
    Mat::from_fn(index.len(), a.ncols(), |i, j| a[(index[i], j)])
}

/// Mean of the diagonal.
pub(crate) fn mean_diagonal(a: &Mat<f64>) -> f64 {
    let n = a.nrows();
    (0..n).map(|i| a[(i, i)]).sum::<f64>() / n.max(1) as f64
}

/// Sum of the elements of `aᵀ b`'s diagonal: the inner product of two matrices of one shape.
pub(crate) fn inner(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    (0..a.ncols()).map(|j| (0..a.nrows()).map(|i| a[(i, j)] * b[(i, j)]).sum::<f64>()).sum()
}

/// Eigenvectors of a symmetric matrix for its `count` largest eigenvalues, `[n, count]`, largest first.
///
/// # Errors
/// As [`eigen`].
pub(crate) fn leading_eigenvectors(a: &Mat<f64>, count: usize) -> Result<Mat<f64>, PruneError> {
    let (_, vectors) = eigen(a)?;
    Ok(vectors.subcols(0, count.min(a.nrows())).to_owned())
}

/// Eigenvalues of a symmetric matrix, largest first, and their eigenvectors, `[n, n]`.
///
/// # Errors
/// [`PruneError::Numerics`] when the iteration does not converge.
pub(crate) fn eigen(a: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>), PruneError> {
    let n = a.nrows();
    let (mut values, mut vectors) = (faer::diag::Diag::zeros(n), Mat::zeros(n, n));
    let spec = Spec::default();
    let mut memory = MemBuffer::new(evd::self_adjoint_evd_scratch::<f64>(n, evd::ComputeEigenvectors::Yes, Par::Seq, spec));
    evd::self_adjoint_evd(a.as_ref(), values.as_mut(), Some(vectors.as_mut()), Par::Seq, MemStack::new(&mut memory), spec)
        .map_err(|e| PruneError::Numerics(format!("eigenvalues of a {n} x {n} matrix: {e:?}")))?;
    let values = (0..n).rev().map(|i| values.column_vector()[i]).collect();
    Ok((values, Mat::from_fn(n, n, |i, j| vectors[(i, n - 1 - j)])))
}

/// The Cholesky factor of a symmetric positive definite matrix.
#[derive(Debug)]
pub(crate) struct Factor(Mat<f64>);

impl Factor {
    /// Factors `a + ridge I`.
    ///
    /// # Errors
    /// [`PruneError::Numerics`] when that is not positive definite.
    pub(crate) fn new(mut a: Mat<f64>, ridge: f64) -> Result<Self, PruneError> {
        let n = a.nrows();
        for i in 0..n {
            a[(i, i)] += ridge;
        }
        let spec = Spec::default();
        let mut memory = MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, spec));
        llt::factor::cholesky_in_place(a.as_mut(), llt::factor::LltRegularization::default(), Par::Seq, MemStack::new(&mut memory), spec)
            .map_err(|e| PruneError::Numerics(format!("{n} x {n} matrix is not positive definite: {e}")))?;
        for j in 0..n {
            for i in 0..j {
                a[(i, j)] = 0.0;
            }
        }
        Ok(Self(a))
    }

    /// Solves for each column of `b`, in place.
    pub(crate) fn solve(&self, b: &mut Mat<f64>) {
        let stack = llt::solve::solve_in_place_scratch::<f64>(b.nrows(), b.ncols(), Par::Seq);
        let mut memory = MemBuffer::new(stack);
        llt::solve::solve_in_place(self.0.as_ref(), b.as_mut(), Par::Seq, MemStack::new(&mut memory));
    }

    /// The inverse of the factored matrix, both triangles.
    pub(crate) fn inverse(&self) -> Mat<f64> {
        let n = self.0.nrows();
        let mut memory = MemBuffer::new(llt::inverse::inverse_scratch::<f64>(n, Par::Seq));
        let mut out = Mat::zeros(n, n);
        llt::inverse::inverse(out.as_mut(), self.0.as_ref(), Par::Seq, MemStack::new(&mut memory));
        for j in 0..n {
            for i in 0..j {
                out[(i, j)] = out[(j, i)];
            }
        }
        out
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Pseudo-random rows in -1..1 (xorshift).
    pub(crate) fn noise(rows: usize, cols: usize, seed: u64) -> Rows {
        let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        Rows::new(rows, cols, (0..rows * cols).map(|_| next()).collect())
    }

    #[test]
    fn gram_and_cross_equal_plain_sums() {
        let (a, b) = (noise(700, 150, 1), noise(700, 3, 2));
        let (g, c) = (gram(a.view(), None), cross(a.view(), b.view(), None));
        for (i, j) in [(0, 0), (149, 3), (3, 149), (130, 129)] {
            let want: f64 = (0..700).map(|r| f64::from(a.row(r)[i]) * f64::from(a.row(r)[j])).sum();
            assert!((g[(i, j)] - want).abs() < 1e-3, "{} {want}", g[(i, j)]);
        }
        let want: f64 = (0..700).map(|r| f64::from(a.row(r)[140]) * f64::from(b.row(r)[2])).sum();
        assert!((c[(140, 2)] - want).abs() < 1e-3);
    }

    #[test]
    fn a_weight_of_two_counts_a_sample_twice() {
        let a = noise(300, 7, 5);
        let weights: Vec<f32> = (0..300).map(|r| if r < 100 { 2.0 } else { 1.0 }).collect();
        let twice = Rows::new(400, 7, [&a.data[..700], &a.data[..]].concat());
        let (weighted, plain) = (gram(a.view(), Some(&weights)), gram(twice.view(), None));
        assert!((0..7).all(|i| (0..7).all(|j| (weighted[(i, j)] - plain[(i, j)]).abs() < 1e-4)));
        let (m, n) = (a.view().means(Some(&weights)), twice.view().means(None));
        assert!(m.iter().zip(&n).all(|(m, n)| (m - n).abs() < 1e-9));
    }

    #[test]
    fn factor_solves_and_inverts() {
        let g = gram(noise(300, 40, 3).view(), None);
        let factor = Factor::new(g.clone(), 0.5).unwrap();
        let inverse = factor.inverse();
        let mut x = Mat::from_fn(40, 2, |i, j| (i + j) as f64);
        factor.solve(&mut x);
        let mut back = Mat::zeros(40, 2);
        let ridged = Mat::from_fn(40, 40, |i, j| g[(i, j)] + if i == j { 0.5 } else { 0.0 });
        add_product(&mut back, 1.0, &ridged, &x);
        assert!((0..40).all(|i| (back[(i, 1)] - (i + 1) as f64).abs() < 1e-8));
        let mut unit = Mat::zeros(40, 40);
        add_product(&mut unit, 1.0, &ridged, &inverse);
        assert!((0..40).all(|i| (0..40).all(|j| (unit[(i, j)] - f64::from(u8::from(i == j))).abs() < 1e-8)));
    }

    #[test]
    fn same_bits_on_one_and_two_threads() {
        let a = noise(1_000, 300, 4);
        let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| gram(a.view(), None));
        assert_eq!(on(1), on(2));
    }

    #[test]
    fn refuses_matrix_that_is_not_positive_definite() {
        assert!(Factor::new(Mat::from_fn(3, 3, |_, _| 1.0), 0.0).is_err());
    }
}
