//! Multiply-accumulates by operator.
//!
//! | operator | multiply-accumulates |
//! | --- | --- |
//! | Conv, DeformConv, ConvInteger, QLinearConv, FusedConv, NhwcFusedConv | elements of the output x elements of the weight behind its first axis (`C/g * k * ...`) |
//! | ConvTranspose | elements of the input x elements of the weight behind its first axis |
//! | Gemm, FusedGemm, QGemm, MatMul and its integer, fused and n-bit kin | elements of the output x contracted length, whether the right side is a weight or an activation |
//! | Einsum | product of the lengths of all its letters, times the operands but one |
//! | Attention, MultiHeadAttention, GroupQueryAttention, QAttention | keys x (elements of queries + elements of the output), masks and caches as full; com.microsoft Attention and QAttention also rows x elements of the weight |
//!
//! Everything else counts nothing: element-wise work, recurrent layers and nested graphs.

use std::collections::HashMap;

use crate::model::{Model, Node};
use crate::shapes::Shapes;

/// Multiply-accumulates of one node at a batch of `rows`, as the table of this module says; 0 for nodes without any and for
/// unknown shapes. A convolution of `[N, C, ...]` to `[N, M, ...]` with `g` groups and kernel `k` has
/// `N * M * (C / g) * prod(k) * prod(output spatial)`.
pub fn node_macs(model: &Model, node: Node<'_>, shapes: &Shapes, rows: usize) -> u64 {
    Lengths { model, node, shapes, rows }.macs().unwrap_or(0)
}

struct Lengths<'a> {
    model: &'a Model,
    node: Node<'a>,
    shapes: &'a Shapes,
    rows: usize,
}

impl Lengths<'_> {
    fn macs(&self) -> Option<u64> {
        match (self.node.domain(), self.node.op_type()) {
            ("", "Conv" | "DeformConv" | "ConvInteger") | ("com.microsoft", "FusedConv" | "NhwcFusedConv") => self.conv(1),
            ("", "QLinearConv") | ("com.microsoft", "QLinearConv") => self.conv(3),
            ("", "ConvTranspose") => Some(count(&self.input(0)?).saturating_mul(count(self.input(1)?.get(1..)?))),
            ("", "Gemm") | ("com.microsoft", "FusedGemm" | "QGemm") | ("", "MatMul" | "MatMulInteger" | "QLinearMatMul") => self.product(),
            (
                "com.microsoft",
                "FusedMatMul" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul" | "MatMulNBits" | "TransposeMatMul" | "GemmFastGelu",
            ) => self.product(),
            ("", "Einsum") => self.einsum(),
            ("", "Attention") | ("com.microsoft", "MultiHeadAttention" | "GroupQueryAttention") => self.attention(),
            ("com.microsoft", "Attention" | "QAttention") => self.packed_attention(),
            _ => Some(0),
        }
    }

    fn dims(&self, name: Option<&str>) -> Option<Vec<usize>> {
        self.shapes.at(name?, self.rows).or_else(|| self.model.constant_dims(name?))
    }

    fn input(&self, index: usize) -> Option<Vec<usize>> {
        self.dims(self.node.input(index))
    }

    fn output(&self) -> Option<u64> {
        self.dims(self.node.output(0)).map(|dims| count(&dims))
    }

    fn conv(&self, weight: usize) -> Option<u64> {
        // The weight is [M, C/g, k...] whatever the layout of the activations.
        Some(self.output()?.saturating_mul(count(self.input(weight)?.get(1..)?)))
    }

    fn product(&self) -> Option<u64> {
        let left = self.input(0)?;
        let transposed = self.node.int("transA").unwrap_or(0) != 0;
        let depth = if transposed { left.iter().rev().nth(1) } else { left.last() };
        Some(self.output()?.saturating_mul(*depth? as u64))
    }

    fn einsum(&self) -> Option<u64> {
        let equation: String = self.node.string("equation")?.chars().filter(|c| !c.is_whitespace()).collect();
        let terms: Vec<&str> = equation.split("->").next()?.split(',').collect();
        let (mut lengths, mut ellipsis) = (HashMap::new(), 1u64);
        for (i, term) in terms.iter().enumerate() {
            let dims = self.input(i)?;
            let (front, back) = term.split_once("...").unwrap_or((term, ""));
            let (front, back): (Vec<char>, Vec<char>) = (front.chars().collect(), back.chars().collect());
            let middle = dims.len().checked_sub(front.len() + back.len())?;
            ellipsis = ellipsis.max(count(dims.get(front.len()..front.len() + middle)?));
            let letters = front.iter().zip(&dims).chain(back.iter().zip(dims.iter().skip(front.len() + middle)));
            for (&letter, &length) in letters {
                let known = lengths.entry(letter).or_insert(length);
                *known = length.max(*known);
            }
        }
        let all = lengths.values().fold(ellipsis, |a, &d| a.saturating_mul(d as u64));
        Some(all.saturating_mul(terms.len() as u64 - 1))
    }

    /// Queries `[B, Sq, D]` or `[B, H, Sq, d]` against keys of the same rank; packed ones are `[B, S, H, 3, d]`.
    fn attention(&self) -> Option<u64> {
        let queries = self.input(0)?;
        let packed = queries.len() == 5;
        let keys = if packed { queries.clone() } else { self.input(1)? };
        let length = *keys.get(if keys.len() == 4 { 2 } else { 1 })?;
        let asked = count(&queries) / if packed { 3 } else { 1 };
        Some(asked.saturating_add(self.output()?).saturating_mul(length as u64))
    }

    /// Input `[B, S, D]`, weight `[D, Q + K + V]`.
    fn packed_attention(&self) -> Option<u64> {
        let (input, weight) = (self.input(0)?, self.input(1)?);
        let [batch, length, _] = input.as_slice() else { return None };
        let rows = count(&[*batch, *length]);
        let queries = match self.node.ints("qkv_hidden_sizes") {
            Some(sizes) => u64::try_from(*sizes.first()?).ok()?,
            None => *weight.get(1)? as u64 / 3,
        };
        let scores = rows.saturating_mul(queries).saturating_add(self.output()?).saturating_mul(*length as u64);
        Some(rows.saturating_mul(count(&weight)).saturating_add(scores))
    }
}

fn count(dims: &[usize]) -> u64 {
    dims.iter().fold(1u64, |a, &d| a.saturating_mul(d as u64))
}
