//! What an attention mask does, found by running it.
//!
//! A mask is whatever is added to the scores. It is recognised by its values: with all-ones inputs it lets every key, or every
//! earlier key, pass; with zeros in one input it hides exactly the keys that are zero there.

use pleach_domain::runtime::{Optimization, Runtime};
use pleach_domain::{Element, Tensor};
use pleach_onnx::builder::{ElementKind, value_info};
use pleach_onnx::{Model, Patch};

use super::Examples;
use crate::dead;

/// Values at or below this hide a key.
const HIDDEN: f32 = -1e3;
/// Most inputs of a model that are tried as masks.
const MOST_INPUTS: usize = 8;

/// What a mask does.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Mask {
    /// Each query sees itself and what is before it only.
    pub(super) causal: bool,
    /// The graph input `[rows, keys]` whose zeros hide keys.
    pub(super) padding: Option<String>,
    /// What is added where a key is hidden.
    pub(super) value: f32,
}

impl Mask {
    /// Reads the mask that `tensor` adds to scores of `[rows, heads, queries, keys]`; `None` when it does anything else.
    pub(super) fn read(model: &Model, tensor: &str, examples: &Examples<'_>, runtime: &dyn Runtime) -> Option<Self> {
        let mut patch = Patch::new();
        patch.set_outputs(vec![value_info(tensor, ElementKind::Float, None)]);
        let model = dead::sweep(&model.apply(&patch).ok()?).ok()?;
        let mut loaded = runtime.load(&model.encode(), Optimization::Disabled).ok()?;
        let names: Vec<String> = model.inputs().into_iter().map(|i| i.name).collect();
        let ones: Vec<(String, Tensor)> = examples
            .iter()
            .filter(|(n, _)| names.iter().any(|m| m == n))
            .map(|(n, t)| Some(((*n).to_owned(), filled(t, |_| true)?)))
            .collect::<Option<_>>()?;
        if ones.len() > MOST_INPUTS {
            return None;
        }
        let mut run = |changed: Option<(&str, &Tensor)>| -> Option<Grid> {
            let inputs: Vec<(&str, &Tensor)> =
                ones.iter().map(|(n, t)| changed.filter(|(name, _)| name == n).unwrap_or((n.as_str(), t))).collect();
            let found = loaded.run(&inputs).ok()?;
            Grid::new(found.first()?)
        };
        let all = run(None)?;
        let causal = match () {
            () if all.follows(|_, _, _| true) => false,
            () if all.follows(|_, query, key| key <= query) => true,
            () => return None,
        };
        let mut mask = Self { causal, padding: None, value: all.lowest().unwrap_or(-10_000.0) };
        for (name, tensor) in &ones {
            let Some(&[rows, keys]) = tensor.shape().first_chunk::<2>().filter(|_| tensor.shape().len() == 2) else { continue };
            let shown = |i: usize| i.is_multiple_of(keys) || (i * 7 + i / keys * 3) % 5 > 1;
            let changed = run(Some((name, &filled(tensor, shown)?)))?;
            if changed == all {
                continue;
            }
            let fits = changed.keys == keys && (changed.rows == rows || rows == 1);
            if mask.padding.is_some() || !fits || !changed.follows(|row, query, key| shown(row * keys + key) && (!causal || key <= query)) {
                return None;
            }
            mask.padding = Some(name.clone());
            mask.value = changed.lowest()?;
        }
        Some(mask)
    }
}

/// An input of zeros and ones.
fn filled(like: &Tensor, one: impl Fn(usize) -> bool) -> Option<Tensor> {
    let ones = |count: usize| (0..count).map(&one);
    let data = match like.data() {
        Element::Fp32(v) => Element::Fp32(ones(v.len()).map(|b| f32::from(u8::from(b))).collect()),
        Element::Fp64(v) => Element::Fp64(ones(v.len()).map(|b| f64::from(u8::from(b))).collect()),
        Element::Int64(v) => Element::Int64(ones(v.len()).map(i64::from).collect()),
        Element::Int32(v) => Element::Int32(ones(v.len()).map(i32::from).collect()),
        Element::Uint8(v) => Element::Uint8(ones(v.len()).map(u8::from).collect()),
        Element::Bool(v) => Element::Bool(ones(v.len()).map(u8::from).collect()),
    };
    Tensor::new(like.shape().to_vec(), data).ok()
}

/// A mask's values, axes of length 1 where it is broadcast.
#[derive(Clone, Debug, PartialEq)]
struct Grid {
    rows: usize,
    queries: usize,
    keys: usize,
    values: Vec<f32>,
}

impl Grid {
    /// `[rows, 1, queries, keys]` or fewer axes.
    fn new(tensor: &Tensor) -> Option<Self> {
        let shape = tensor.shape();
        let from_end = |back: usize| shape.len().checked_sub(back).and_then(|i| shape.get(i)).copied().unwrap_or(1);
        let grid = Self { rows: from_end(4), queries: from_end(2), keys: from_end(1), values: tensor.as_fp32()?.to_vec() };
        (shape.len() <= 4 && from_end(3) == 1).then_some(grid)
    }

    /// Whether it adds nothing where `shown` holds of row, query and key, and hides all others.
    fn follows(&self, shown: impl Fn(usize, usize, usize) -> bool) -> bool {
        self.values.iter().enumerate().all(|(i, &v)| {
            let (row, query, key) = (i / (self.queries * self.keys), i / self.keys % self.queries, i % self.keys);
            if shown(row, query, key) { v == 0.0 } else { v <= HIDDEN }
        })
    }

    /// The value nearest to zero that hides.
    fn lowest(&self) -> Option<f32> {
        self.values.iter().copied().filter(|v| *v <= HIDDEN).reduce(f32::max)
    }
}
