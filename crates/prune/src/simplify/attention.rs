//! Self-attention, however it is spelled, becomes one com.microsoft Attention node with merged projections.
//!
//! Matched is what every exporter writes: softmax(scale · (Q Kᵀ) + mask) V over `[rows, heads, length, size]`, Q, K and V being
//! projections of one tensor. Batch and sequence stay as free as they were.

use std::collections::{BTreeMap, BTreeSet};

use pleach_domain::runtime::Runtime;
use pleach_onnx::builder::{attribute, node};
use pleach_onnx::proto::NodeProto;
use pleach_onnx::{Model, Node, OnnxError, Patch, Shapes};

use super::cone::scalar;
use super::mask::Mask;
use super::{Examples, MICROSOFT, contrib};

/// Masks by the tensor that is added to scores.
pub(super) type Masks = BTreeMap<String, Mask>;

/// A batch size that no other axis has, at which shapes are compared.
const ROWS: usize = 1_009;
/// ONNX element type INT32.
const INT32: i64 = 6;

/// Reads the masks of every self-attention, by the tensor that is added to the scores; masks that do anything else are left out.
pub(super) fn masks(model: &Model, shapes: &Shapes, examples: &Examples<'_>, runtime: &dyn Runtime) -> Masks {
    let added = model.nodes().filter(|n| n.is("Softmax")).filter_map(|n| Reader { model, shapes }.attention(n)?.mask);
    let tensors: BTreeSet<&str> = added.collect();
    tensors.into_iter().filter_map(|t| Some((t.to_owned(), Mask::read(model, t, examples, runtime)?))).collect()
}

/// Fuses every self-attention whose mask is known.
pub(super) fn fuse(model: &Model, shapes: &Shapes, masks: &Masks) -> Result<Model, OnnxError> {
    let mut patch = Patch::new();
    let none = Mask::default();
    let mut cast: BTreeMap<&str, String> = BTreeMap::new();
    for softmax in model.nodes().filter(|n| n.is("Softmax")) {
        let Some(found) = (Reader { model, shapes }).attention(softmax) else { continue };

        let Some(mask) = found.mask.map_or(Some(&none), |tensor| masks.get(tensor)) else { continue };
        let mut nodes = Vec::new();
        let padding = mask.padding.as_deref().map(|input| {
            cast.entry(input).or_insert_with(|| {
                let name = model.free_name(&format!("{input}.int32"));
                nodes.push(node("Cast", &name, &[input], &name, vec![attribute("to", INT32)]));
                name
            })
        });
        let attention = found.emit(model, mask, padding.map(|name| name.as_str()), &mut patch)?;
        nodes.push(attention);
        patch.import(MICROSOFT, 1);
        patch.replace_node(found.last.id, nodes);
    }
    model.apply(&patch)
}

/// A linear map of one tensor's last axis.
struct Projection<'a> {
    input: &'a str,
    inputs: usize,
    outputs: usize,
    /// Row-major `[inputs, outputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Projection<'_> {
    /// Outputs `start..start + count`.
    fn part(self, start: usize, count: usize) -> Option<Self> {
        let end = start.checked_add(count).filter(|&e| e <= self.outputs)?;
        let weight = self.weight.chunks(self.outputs.max(1)).flat_map(|row| row.get(start..end).unwrap_or_default()).copied().collect();
        let bias = self.bias.get(start..end)?.to_vec();
        Some(Self { outputs: count, weight, bias, ..self })
    }
}

/// A self-attention.
struct Found<'a> {
    /// The node whose output is replaced.
    last: Node<'a>,
    projections: [Projection<'a>; 3],
    heads: usize,
    scale: f64,
    mask: Option<&'a str>,
}

impl Found<'_> {
    fn emit(&self, model: &Model, mask: &Mask, padding: Option<&str>, patch: &mut Patch) -> Result<NodeProto, OnnxError> {
        let output = self.last.output(0).unwrap_or_default();
        let name = |part: &str| model.free_name(&format!("{output}.{part}"));
        let (weight, bias) = (name("qkv.weight"), name("qkv.bias"));
        let inputs = self.projections.first().map_or(0, |p| p.inputs);
        let sizes: Vec<usize> = self.projections.iter().map(|p| p.outputs).collect();
        let width = sizes.iter().sum();
        let rows = (0..inputs).flat_map(|row| {
            self.projections.iter().flat_map(move |p| p.weight.get(row * p.outputs..(row + 1) * p.outputs).unwrap_or_default())
        });
        patch.set_floats(model, &weight, &[inputs, width], &rows.copied().collect::<Vec<_>>())?;
        let biases: Vec<f32> = self.projections.iter().flat_map(|p| p.bias.iter().copied()).collect();
        patch.set_floats(model, &bias, &[width], &biases)?;
        let input = self.projections.first().map_or("", |p| p.input);
        let mut names = vec![input.to_owned(), weight, bias];
        names.extend(padding.map(str::to_owned));
        let integer = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
        let mut attributes = vec![
            attribute("num_heads", integer(self.heads)),
            attribute("qkv_hidden_sizes", sizes.into_iter().map(integer).collect::<Vec<_>>()),
            attribute("scale", self.scale as f32),
            attribute("unidirectional", i64::from(mask.causal)),
        ];
        if mask.causal || padding.is_some() {
            attributes.push(attribute("mask_filter_value", mask.value.max(f32::MIN)));
        }
        Ok(contrib("Attention", names, vec![output.to_owned()], attributes))
    }
}

struct Reader<'a> {
    model: &'a Model,
    shapes: &'a Shapes,
}

impl<'a> Reader<'a> {
    fn attention(&self, softmax: Node<'a>) -> Option<Found<'a>> {
        let rank = self.dims(softmax.input(0)?)?.len();
        let axis = softmax.int("axis").unwrap_or(if self.model.opset("")? < 13 { 1 } else { -1 });
        if rank != 4 || (axis != -1 && axis != 3) {
            return None;
        }
        let (scores, mask) = self.masked(softmax.input(0)?);
        let (scores, scale) = self.unscaled(scores);
        let product = self.model.producer(scores).filter(|n| n.is("MatMul"))?;
        let (query, query_scale) = self.unscaled(product.input(0)?);
        let (key, key_scale) = self.unscaled(product.input(1)?);
        let (query, a) = self.heads(query, [0, 2, 1, 3])?;
        let (key, b) = self.heads(key, [0, 2, 3, 1])?;
        let context = self.only_reader(softmax.output(0)?).filter(|n| n.is("MatMul") && n.input(0) == softmax.output(0))?;
        let (value, c) = self.heads(context.input(1)?, [0, 2, 1, 3])?;
        let back = self.only_reader(context.output(0)?).filter(|n| n.is("Transpose") && n.ints("perm") == Some(&[0, 2, 1, 3]))?;
        let last = self.only_reader(back.output(0)?).filter(|n| n.is("Reshape"))?;
        let [query, key, value] = [self.projection(query)?, self.projection(key)?, self.projection(value)?];
        let same = query.input == key.input && key.input == value.input && query.inputs == value.inputs && query.inputs == key.inputs;
        let input = self.dims(query.input)?;
        let whole = self.dims(last.output(0)?)? == [*input.first()?, *input.get(1)?, value.outputs];
        let fits = a.heads == b.heads && b.heads == c.heads && query.outputs == key.outputs && input.len() == 3;
        (same && whole && fits)
            .then_some(Found {
                last,
                projections: [query, key, value],
                heads: a.heads,
                scale: scale * a.scale * b.scale * query_scale * key_scale,
                mask,
            })
            .filter(|f| f.scale.is_finite() && f.scale > 0.0 && c.scale == 1.0)
    }

    fn dims(&self, tensor: &str) -> Option<Vec<usize>> {
        self.shapes.at(tensor, ROWS)
    }

    fn only_reader(&self, tensor: &str) -> Option<Node<'a>> {
        let [only] = self.model.consumers(tensor) else { return None };
        self.model.node(only.node).filter(|_| only.input.is_some() && !self.model.is_output(tensor))
    }

    /// The scores before a mask is added, and the mask.
    fn masked(&self, tensor: &'a str) -> (&'a str, Option<&'a str>) {
        let split = || {
            let add = self.model.producer(tensor).filter(|n| n.is("Add"))?;
            let (a, b) = (add.input(0)?, add.input(1)?);
            // The scores are what comes, perhaps scaled, from a product.
            let scores = |name: &'a str| self.model.producer(self.unscaled(name).0).is_some_and(|n| n.is("MatMul"));
            match (scores(a), scores(b)) {
                (true, false) => Some((a, Some(b))),
                (false, true) => Some((b, Some(a))),
                _ => None,
            }
        };
        split().unwrap_or((tensor, None))
    }

    /// A tensor before it is multiplied or divided by scalars, and the product of those.
    fn unscaled(&self, tensor: &'a str) -> (&'a str, f64) {
        let (mut tensor, mut scale) = (tensor, 1.0);
        loop {
            let next = || {
                let node = self.model.producer(tensor)?;
                let (a, b) = (node.input(0)?, node.input(1)?);
                match (node.is("Mul"), node.is("Div"), scalar(self.model, a), scalar(self.model, b)) {
                    (true, _, None, Some(s)) => Some((a, s)),
                    (true, _, Some(s), None) => Some((b, s)),
                    (_, true, None, Some(s)) => Some((a, 1.0 / s)),
                    _ => None,
                }
            };
            let Some((inner, factor)) = next() else { return (tensor, scale) };
            (tensor, scale) = (inner, scale * factor);
        }
    }

    /// The tensor `[rows, length, heads * size]` that is split into heads and transposed by `perm`.
    fn heads(&self, tensor: &'a str, perm: [i64; 4]) -> Option<(&'a str, Heads)> {
        let (tensor, first) = self.unscaled(tensor);
        let transpose = self.model.producer(tensor).filter(|n| n.is("Transpose"))?;
        let got: [i64; 4] = transpose.ints("perm")?.try_into().ok()?;
        let (inner, second) = self.unscaled(transpose.input(0)?);
        if got != perm {
            // Keys may be transposed twice: first to heads, then each head.
            let twice = perm == [0, 2, 3, 1] && got == [0, 1, 3, 2];
            let (from, heads) = twice.then(|| self.heads(inner, [0, 2, 1, 3])).flatten()?;
            return Some((from, Heads { scale: heads.scale * first * second, ..heads }));
        }
        let reshape = self.model.producer(inner).filter(|n| n.is("Reshape"))?;
        let (from, third) = self.unscaled(reshape.input(0)?);
        let (flat, split) = (self.dims(from)?, self.dims(inner)?);
        let (&[rows, length, width], &[r, l, heads, size]) = (flat.as_slice(), split.as_slice()) else { return None };
        ((rows, length, width) == (r, l, heads * size)).then_some((from, Heads { heads, scale: first * second * third }))
    }

    fn projection(&self, tensor: &'a str) -> Option<Projection<'a>> {
        let node = self.model.producer(tensor)?;
        if node.is("Split") {
            let at = node.outputs().position(|o| o == tensor)?;
            let axis = node.int("axis").unwrap_or(0);
            let sizes = node.outputs().map(|o| self.dims(o)?.last().copied()).collect::<Option<Vec<_>>>()?;
            let start = sizes.iter().take(at).sum();
            return if axis == -1 || axis == 2 { self.projection(node.input(0)?)?.part(start, *sizes.get(at)?) } else { None };
        }
        let (product, bias) = match super::biased(self.model, tensor) {
            Some((x, bias)) => (self.model.producer(x)?, self.model.floats(bias)?.1),
            None => (node, Vec::new()),
        };
        let weight = self.model.floats(product.input(1).filter(|_| product.is("MatMul"))?)?;
        let (&[inputs, outputs], weight) = (weight.0.as_slice(), weight.1) else { return None };
        let bias = if bias.is_empty() { vec![0.0; outputs] } else { bias };
        (bias.len() == outputs).then_some(Projection { input: product.input(0)?, inputs, outputs, weight, bias })
    }
}

/// How an axis is split into heads.
#[derive(Clone, Copy, Debug)]
struct Heads {
    heads: usize,
    /// Product of the scalars on the way.
    scale: f64,
}
