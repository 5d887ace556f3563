//! Fused operators: attention as one node, and those of ONNX Runtime's own domain com.microsoft.
//!
//! Sources: the operator schemas of ONNX Runtime 1.28 (docs/ContribOperators.md) and of ai.onnx 23 and 24. An operator of that domain without a
//! rule here freezes what it touches.

use pleach_onnx::Node;

use super::attention::Heads;
use super::{Axis, Contracted, Counted, Made, Mask, Place, Summed, Trace, place};

impl<'a> Trace<'a> {
    /// The rule of a com.microsoft operator.
    pub(super) fn contrib(&mut self, node: Node<'a>) -> Option<()> {
        match node.op_type() {
            "FusedMatMul" => self.fused_matmul(node),
            "FusedGemm" => self.gemm(node),
            "FusedConv" => self.fused_conv(node),
            "BiasGelu" | "FastGelu" | "BiasAdd" => self.biased(node),
            "Gelu" | "QuickGelu" => self.unary(node),
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => self.layer_norm(node, 2),
            "EmbedLayerNormalization" => self.embed_norm(node),
            "Attention" => self.packed_attention(node),
            "MultiHeadAttention" => self.multi_head_attention(node),
            "GroupQueryAttention" => self.group_query_attention(node),
            "RotaryEmbedding" => self.rotary(node),
            "DynamicQuantizeMatMul" => self.quantized_matmul(node, &[2, 3], Some(4)),
            "MatMulIntegerToFloat" => self.quantized_matmul(node, &[3, 5], Some(6)),
            "QLinearAdd" | "QLinearMul" => self.quantized_sum(node),
            "QLinearSigmoid" | "QLinearLeakyRelu" => self.unary(node),
            _ => None,
        }
    }

    fn fused_matmul(&mut self, node: Node<'a>) -> Option<()> {
        let flag = |name| node.int(name).unwrap_or(0) != 0;
        if flag("transBatchA") || flag("transBatchB") {
            return None;
        }
        self.matmul_as(node, [flag("transA"), flag("transB")])
    }

    /// A convolution with an activation, and a sum of its result with input 3.
    fn fused_conv(&mut self, node: Node<'a>) -> Option<()> {
        self.conv(node)?;
        let axes = self.tensors.get(node.output(0)?)?.clone();
        node.input(3).map_or(Some(()), |added| self.meet(node, added, &axes))
    }

    /// Element by element on the first input, with others that broadcast to it.
    fn biased(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        for name in node.inputs().skip(1) {
            self.meet(node, name, &axes)?;
        }
        self.set(node, axes)
    }

    /// Embeddings, their sum and its normalisation in one: the hidden axis stays whole.
    fn embed_norm(&mut self, node: Node<'a>) -> Option<()> {
        let reason = format!("{} normalises over it", place(node));
        for table in [2, 3, 4].into_iter().filter_map(|i| node.input(i)) {
            let columns = self.axes(table)?.get(1)?.clone();
            self.atoms.freeze(&columns, &reason);
        }
        for name in [5, 6].into_iter().filter_map(|i| node.input(i)) {
            self.freeze_tensor(name, &reason);
        }
        for name in node.outputs() {
            let axes = self.new_axes(name, &reason);
            self.tensors.insert(name.to_owned(), axes);
        }
        Some(())
    }

    /// com.microsoft Attention: projections to queries, keys and values by one weight `[C, Q + K + V]`, and attention.
    fn packed_attention(&mut self, node: Node<'a>) -> Option<()> {
        let (x, weight) = (node.input(0)?, self.root(node.input(1)?)?);
        if node.input(4).is_some() || node.outputs().count() > 1 || node.int("do_rotary").unwrap_or(0) != 0 {
            return None;
        }
        let heads = usize::try_from(node.int("num_heads")?).ok()?;
        let (axes, dims) = (self.axes(x)?, self.dims(&weight)?);
        let &[_, width] = dims.as_slice() else { return None };
        let sizes: Vec<usize> = match node.ints("qkv_hidden_sizes") {
            Some(sizes) => sizes.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<_>>()?,
            None => vec![width / 3; 3],
        };
        let &[q, k, v] = sizes.as_slice() else { return None };
        if q != k || q + k + v != width {
            return None;
        }
        let out = self.bound(&weight, 1, width);
        let parts = [0..q, q..q + k, q + k..width].map(|range| self.atoms.slice(&out, range));
        let [Some(q), Some(k), Some(v)] = parts else { return None };
        let [keys, values] = [&k, &v].map(|part| self.heads(part, heads));
        let mut zeros = vec![Mask::Constant { name: weight.clone(), axis: 1 }];
        self.bind(&weight, 0, axes.get(2)?, node)?;
        let bias = node.input(2).and_then(|bias| self.root(bias));
        if let Some(bias) = &bias {
            self.bind(bias, 0, &out, node)?;
            zeros.push(Mask::Constant { name: bias.clone(), axis: 0 });
        }
        let (result, all) = self.attend(node, zeros, &q, &keys?, &values?, heads)?;
        self.attention_bias(node, 5, &all)?;
        let input = x.to_owned();
        self.made.push(Made { node: node.id, weight: weight.clone(), weight_axis: 1, bias: bias.clone(), axis: out });
        self.summed.push(Summed { node: node.id, weight, weight_axis: 0, input, input_axis: 2, bias, axis: axes.get(2)?.clone() });
        self.count(node, "num_heads", 0, &all);
        for (index, part) in [&q, &k, &v].into_iter().enumerate() {
            self.count(node, "qkv_hidden_sizes", index, part);
        }
        self.set(node, vec![axes.first()?.clone(), axes.get(1)?.clone(), result])
    }

    /// com.microsoft MultiHeadAttention over `[B, S, heads * dim]` each, without a cache.
    fn multi_head_attention(&mut self, node: Node<'a>) -> Option<()> {
        if (6..10).any(|i| node.input(i).is_some()) || node.outputs().count() > 1 {
            return None;
        }
        let heads = usize::try_from(node.int("num_heads")?).ok()?;
        let [q, k, v] = self.three(node)?;
        if let Some(bias) = node.input(3) {
            let joined = [&q, &k, &v].into_iter().flat_map(|axes| axes.get(2).map(|a| a.0.clone()).unwrap_or_default()).collect();
            self.bind_or_unify(bias, 0, &Axis(joined), node)?;
        }
        let (keys, values) = (self.heads(k.get(2)?, heads), self.heads(v.get(2)?, heads));
        let mut masks = vec![Mask::Input { node: node.id, input: 0, axis: 2 }];
        if let Some(bias) = node.input(3) {
            masks.push(Mask::Constant { name: self.root(bias)?, axis: 0 });
        }
        let (result, all) = self.attend(node, masks, q.get(2)?, &keys?, &values?, heads)?;
        self.attention_bias(node, 5, &all)?;
        self.count(node, "num_heads", 0, &all);
        self.set(node, vec![q.first()?.clone(), q.get(1)?.clone(), result])
    }

    /// com.microsoft GroupQueryAttention: query heads go evenly, and keys with all of theirs.
    fn group_query_attention(&mut self, node: Node<'a>) -> Option<()> {
        if (9..16).any(|i| node.input(i).is_some()) || node.int("qk_output").unwrap_or(0) != 0 {
            return None;
        }
        let count = |name| node.int(name).and_then(|n| usize::try_from(n).ok());
        let (heads, shared) = (count("num_heads")?, count("kv_num_heads")?);
        let [q, k, v] = self.three(node)?;
        let (keys, values) = (self.heads(k.get(2)?, shared), self.heads(v.get(2)?, shared));
        let (keys, values) = (keys?, values?);
        self.atoms.unify(&keys.dim, &values.dim, &place(node));
        self.atoms.freeze(&keys.dim, &format!("{} takes heads of multiples of 8 dims alone", place(node)));
        let (result, all) = self.attend(node, vec![Mask::Input { node: node.id, input: 0, axis: 2 }], q.get(2)?, &keys, &values, heads)?;
        for (input, own) in [(3, &keys), (4, &values)] {
            if let Some(past) = node.input(input) {
                self.cache(node, past, own)?;
            }
        }
        for (output, own) in [(1, &keys), (2, &values)] {
            let Some(name) = node.output(output) else { continue };
            let dims = self.dims(name)?;
            let length = self.atoms.frozen(*dims.get(2)?, "cached positions");
            self.tensors.insert(name.to_owned(), vec![q.first()?.clone(), own.heads.clone(), length, own.dim.clone()]);
        }
        self.count(node, "num_heads", 0, &all);
        self.count(node, "kv_num_heads", 0, &keys.heads);
        self.set(node, vec![q.first()?.clone(), q.get(1)?.clone(), result])
    }

    /// ai.onnx Attention over `[B, S, heads * dim]` or `[B, heads, S, dim]`.
    pub(super) fn attention(&mut self, node: Node<'a>) -> Option<()> {
        let [q, k, v] = self.three(node)?;
        if node.output(3).is_some() || node.input(4).is_some() != node.input(5).is_some() {
            return None;
        }
        let flat = q.len() == 3;
        let count = |name, axes: &[Axis], trace: &Self| {
            let own = if flat { None } else { axes.get(1).map(|axis| trace.atoms.axis_length(axis)) };
            own.or_else(|| node.int(name).and_then(|n| usize::try_from(n).ok()))
        };
        let (heads, shared) = (count("q_num_heads", &q, self)?, count("kv_num_heads", &k, self)?);
        let by_head = |trace: &mut Self, axes: &[Axis]| {
            if flat { trace.heads(axes.get(2)?, shared) } else { Some(Heads { heads: axes.get(1)?.clone(), dim: axes.get(3)?.clone() }) }
        };
        let (keys, values) = (by_head(self, &k), by_head(self, &v));
        let (keys, values) = (keys?, values?);
        let queries = if flat { q.get(2)?.clone() } else { self.atoms.product(&[q.get(1)?.clone(), q.get(3)?.clone()])? };
        let masks = vec![Mask::Input { node: node.id, input: 0, axis: if flat { 2 } else { 3 } }];
        let (result, all) = self.attend(node, masks, &queries, &keys, &values, heads)?;
        self.attention_bias(node, 3, &all)?;
        for (input, own) in [(4, &keys), (5, &values)] {
            if let Some(past) = node.input(input) {
                self.cache(node, past, own)?;
            }
        }
        for (output, own) in [(1, &keys), (2, &values)] {
            let Some(name) = node.output(output) else { continue };
            let length = self.dims(name)?.get(2).copied()?;
            let length = self.atoms.frozen(length, "cached positions");
            self.tensors.insert(name.to_owned(), vec![q.first()?.clone(), own.heads.clone(), length, own.dim.clone()]);
        }
        if flat {
            self.count(node, "q_num_heads", 0, &all);
            self.count(node, "kv_num_heads", 0, &keys.heads);
            return self.set(node, vec![q.first()?.clone(), q.get(1)?.clone(), result]);
        }
        self.set(node, vec![q.first()?.clone(), all, q.get(2)?.clone(), values.dim])
    }

    /// RotaryEmbedding: dims of a head turn in pairs by position, and stay whole; heads pass.
    pub(super) fn rotary(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let reason = format!("{} rotates it by position", place(node));
        if axes.len() == 4 {
            self.atoms.freeze(axes.get(3)?, &reason);
            return self.set(node, axes);
        }
        let heads = node.int("num_heads").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let own = self.heads(axes.get(2)?, heads)?;
        self.atoms.freeze(&own.dim, &reason);
        self.count(node, "num_heads", 0, &own.heads);
        self.set(node, axes)
    }

    /// A product with an integer weight: scales and zero points by column go with it, at the inputs given.
    pub(super) fn quantized_matmul(&mut self, node: Node<'a>, by_column: &[usize], bias: Option<usize>) -> Option<()> {
        let (x, weight) = (node.input(0)?, self.root(node.input(1)?)?);
        let (mut axes, dims) = (self.axes(x)?, self.dims(&weight)?);
        if dims.len() != 2 || axes.len() < 2 {
            return None;
        }
        let contracted = axes.pop()?;
        let out = self.bound(&weight, 1, dims.get(1).copied()?);
        self.bind(&weight, 0, &contracted, node)?;
        let bias = bias.and_then(|i| node.input(i));
        for name in by_column.iter().filter_map(|&i| node.input(i)).chain(bias) {
            self.meet(node, name, std::slice::from_ref(&out))?;
        }
        let bias = bias.and_then(|name| self.root(name));
        self.made.push(Made { node: node.id, weight, weight_axis: 1, bias, axis: out.clone() });
        // Zeros of a float input are exact whatever the zero points.
        let reader = if node.op_type() == "DynamicQuantizeMatMul" {
            node
        } else {
            self.model.producer(x).filter(|n| n.is("DynamicQuantizeLinear"))?
        };
        let masks = vec![Mask::Input { node: reader.id, input: 0, axis: axes.len() }];
        self.atoms.stiffen(&contracted);
        self.contracted.push(Contracted { node: node.id, masks, left: contracted.clone(), right: contracted });
        axes.push(out);
        self.set(node, axes)
    }

    /// DynamicQuantizeLinear: values as bytes, one scale and one zero point for all.
    pub(super) fn quantize(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        for name in [1, 2].into_iter().filter_map(|i| node.output(i)) {
            self.tensors.insert(name.to_owned(), vec![]);
        }
        self.set(node, axes)
    }

    /// Quantised sums and products of two tensors, with a scale and a zero point each.
    fn quantized_sum(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        self.meet(node, node.input(3)?, &axes)?;
        self.set(node, axes)
    }

    /// The axes of queries, keys and values.
    fn three(&mut self, node: Node<'a>) -> Option<[Vec<Axis>; 3]> {
        let [q, k, v] = [self.axes(node.input(0)?)?, self.axes(node.input(1)?)?, self.axes(node.input(2)?)?];
        (matches!(q.len(), 3 | 4) && q.len() == k.len() && k.len() == v.len()).then_some([q, k, v])
    }

    /// What is added to the scores, `[.., heads or 1, S, T]`.
    fn attention_bias(&mut self, node: Node<'a>, input: usize, heads: &Axis) -> Option<()> {
        let Some(name) = node.input(input) else { return Some(()) };
        let dims = self.dims(name)?;
        match dims.len().checked_sub(3) {
            Some(at) if dims.get(at) == Some(&self.atoms.axis_length(heads)) => self.bind_or_unify(name, at, heads, node),
            _ => Some(()),
        }
    }

    /// A cache of keys or values, `[B, heads, positions, dim]`.
    fn cache(&mut self, node: Node<'a>, name: &str, own: &Heads) -> Option<()> {
        self.bind_or_unify(name, 1, &own.heads, node)?;
        self.bind_or_unify(name, 3, &own.dim, node)
    }

    fn count(&mut self, node: Node<'a>, name: &'static str, index: usize, axis: &Axis) {
        let Ok(dense) = i64::try_from(self.atoms.axis_length(axis)) else { return };
        self.counts.push(Counted { node: node.id, place: Place::Attribute(name), index, dense, axis: axis.clone() });
    }
}
