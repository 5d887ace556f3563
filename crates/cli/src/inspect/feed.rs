//! What a model is run on: lengths for the axes it leaves free, and values its operators accept.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use pleach_domain::{DomainError, Element, Tensor};
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::{Dim, Model, Node, ValueInfo};
use thiserror::Error;

/// Shapes of inputs that the caller gives, by name.
pub type GivenShapes = BTreeMap<String, Vec<usize>>;

/// Most elements of one input.
const MAX_ELEMENTS: usize = 1 << 28;
/// Operators between an input and what says which values it may have.
const PASSING: [&str; 9] = ["Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand", "Slice"];

/// Lengths for free axes: sides of images, and sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) side: usize,
    pub(super) sequence: usize,
}

/// Tried in turn until the model runs: the usual first, then what smaller position tables allow.
pub(super) const USUAL: [Lengths; 4] = [
    Lengths { side: 224, sequence: 128 },
    Lengths { side: 64, sequence: 64 },
    Lengths { side: 32, sequence: 16 },
    Lengths { side: 1, sequence: 1 },
];

/// Why an input cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FeedError {
    /// A shape for an input that the model does not have.
    #[error("--shape {name}: the model's inputs are {expected:?}")]
    Unknown {
        /// Name as given.
        name: String,
        /// Inputs of the model.
        expected: Vec<String>,
    },
    /// A shape that does not fit what the model fixes.
    #[error("--shape {name}={got:?}: the model takes {expected}")]
    Shape {
        /// Input.
        name: String,
        /// As given.
        got: Vec<usize>,
        /// As declared.
        expected: String,
    },
    /// An input without a declared shape.
    #[error("input `{name}` has no declared shape: give it with --shape {name}=...")]
    NoShape {
        /// Input.
        name: String,
    },
    /// An input of a type that no tensor here can have.
    #[error("input `{name}` has ONNX element type {element_type}: expected float, float16, double, int32, int64, uint8 or bool")]
    Type {
        /// Input.
        name: String,
        /// ONNX element type number.
        element_type: i32,
    },
    /// An input too large to be made.
    #[error("input `{name}` of shape {shape:?} has more than {MAX_ELEMENTS} elements")]
    TooLarge {
        /// Input.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor that is none.
    #[error("making an input")]
    Tensor(#[from] DomainError),
}

/// Which integers an input may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Values {
    /// Indices below this length of a table.
    Below(i64),
    /// What the model compares it with.
    OneOf(Vec<i64>),
    /// Ones: masks, flags and everything unknown.
    Ones,
}

/// One axis of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Batch,
    Fixed(usize),
}

/// One input of a model, ready to be made at any batch size.
#[derive(Clone, Debug)]
struct Source {
    name: String,
    element_type: DataType,
    shape: Vec<Length>,
    values: Values,
}

/// All inputs of a model.
#[derive(Clone, Debug)]
pub(super) struct Feed {
    sources: Vec<Source>,
    /// Batch size that the caller gave, else 1.
    pub(super) batch: usize,
    /// Whether a length was chosen here, so that others may be tried.
    pub(super) chosen: bool,
}

impl Feed {
    /// Lengths from what the model fixes, what the caller gives, one symbol's other uses, and `lengths`, in that order.
    pub(super) fn new(model: &Model, given: &GivenShapes, lengths: Lengths) -> Result<Self, FeedError> {
        let inputs = model.inputs();
        if let Some(name) = given.keys().find(|name| inputs.iter().all(|i| i.name != **name)) {
            return Err(FeedError::Unknown { name: name.clone(), expected: inputs.into_iter().map(|i| i.name).collect() });
        }
        let symbols = Symbols::of(&inputs, given)?;
        let mut feed = Self { sources: Vec::new(), batch: symbols.batch.unwrap_or(1), chosen: false };
        for input in &inputs {
            let element_type = element_type(input)?;
            let shape = match (&input.dims, given.get(&input.name)) {
                (None, None) => return Err(FeedError::NoShape { name: input.name.clone() }),
                (None, Some(shape)) => shape.iter().map(|&l| Length::Fixed(l)).collect(),
                (Some(dims), given) => {
                    let length = |axis| given.and_then(|g| g.get(axis)).copied();
                    (0..dims.len()).map(|axis| feed.length(dims, axis, length(axis), &symbols, lengths)).collect()
                }
            };
            feed.sources.push(Source { name: input.name.clone(), element_type, shape, values: values(model, &input.name) });
        }
        Ok(feed)
    }

    /// A given shape with the axes that the model leaves free, but for the batch, twice as long.
    pub(super) fn scaled(model: &Model, name: &str, shape: &[usize]) -> Vec<usize> {
        let input = model.inputs().into_iter().find(|input| input.name == name);
        let free = |axis: usize| {
            axis > 0 && input.as_ref().is_some_and(|i| matches!(i.dims.as_deref().and_then(|d| d.get(axis)), Some(Dim::Free(_))))
        };
        shape.iter().enumerate().map(|(axis, &length)| if free(axis) { length * 2 } else { length }).collect()
    }

    fn length(&mut self, dims: &[Dim], axis: usize, given: Option<usize>, symbols: &Symbols, lengths: Lengths) -> Length {
        let symbol = match dims.get(axis) {
            Some(Dim::Fixed(length)) => return Length::Fixed(*length),
            Some(Dim::Free(symbol)) => symbol.as_str(),
            None => "",
        };
        if axis == 0 || symbols.batches.contains(symbol) {
            return Length::Batch;
        }
        if let Some(length) = given.or_else(|| symbols.lengths.get(symbol).copied()) {
            return Length::Fixed(length);
        }
        self.chosen = true;
        // Images are [N, C, H, W] or [N, H, W, C]; C is the small one.
        let last_is_colour = matches!(dims.last(), Some(Dim::Fixed(1..=4)));
        Length::Fixed(match dims.len() {
            4 | 5 if axis == 1 && !last_is_colour => 3,
            4 | 5 => lengths.side,
            _ => lengths.sequence,
        })
    }

    /// Whether any axis grows with the batch.
    pub(super) fn grows(&self) -> bool {
        self.sources.iter().any(|s| s.shape.contains(&Length::Batch))
    }

    /// Every input at a batch size, by name; the same numbers each time.
    pub(super) fn tensors(&self, rows: usize) -> Result<Vec<(String, Tensor)>, FeedError> {
        let mut noise = Noise(0x5eed);
        self.sources.iter().map(|s| Ok((s.name.clone(), s.tensor(rows, &mut noise)?))).collect()
    }
}

/// Lengths that symbols stand for.
#[derive(Default)]
struct Symbols<'a> {
    /// Symbols of first axes, which are batches wherever they occur.
    batches: HashSet<&'a str>,
    lengths: BTreeMap<&'a str, usize>,
    batch: Option<usize>,
}

impl<'a> Symbols<'a> {
    fn of(inputs: &'a [ValueInfo], given: &GivenShapes) -> Result<Self, FeedError> {
        let mut symbols = Self::default();
        for input in inputs {
            let Some(dims) = &input.dims else { continue };
            if let Some(Dim::Free(symbol)) = dims.first().filter(|d| **d != Dim::Free(String::new())) {
                symbols.batches.insert(symbol);
            }
            let Some(got) = given.get(&input.name) else { continue };
            let fits = |(dim, &length): (&Dim, &usize)| length > 0 && !matches!(dim, Dim::Fixed(fixed) if *fixed != length);
            if got.len() != dims.len() || !dims.iter().zip(got).all(fits) {
                return Err(FeedError::Shape { name: input.name.clone(), got: got.clone(), expected: declared(dims) });
            }
            for (axis, (dim, &length)) in dims.iter().zip(got).enumerate() {
                match dim {
                    Dim::Fixed(_) => {}
                    Dim::Free(_) if axis == 0 => symbols.batch = Some(length),
                    Dim::Free(symbol) if symbol.is_empty() => {}
                    Dim::Free(symbol) => drop(symbols.lengths.insert(symbol, length)),
                }
            }
        }
        Ok(symbols)
    }
}

/// A declared shape, e.g. `[batch, 3, ?, ?]`.
pub(super) fn declared(dims: &[Dim]) -> String {
    let axis = |dim: &Dim| match dim {
        Dim::Fixed(length) => length.to_string(),
        Dim::Free(symbol) if symbol.is_empty() => "?".to_owned(),
        Dim::Free(symbol) => symbol.clone(),
    };
    format!("[{}]", dims.iter().map(axis).collect::<Vec<_>>().join(", "))
}

fn element_type(input: &ValueInfo) -> Result<DataType, FeedError> {
    match DataType::try_from(input.element_type) {
        Ok(
            kind @ (DataType::Float
            | DataType::Float16
            | DataType::Double
            | DataType::Int64
            | DataType::Int32
            | DataType::Uint8
            | DataType::Bool),
        ) => Ok(kind),
        _ => Err(FeedError::Type { name: input.name.clone(), element_type: input.element_type }),
    }
}

/// Reads off the graph which integers an input may hold.
fn values(model: &Model, input: &str) -> Values {
    let (mut seen, mut ahead) = (HashSet::from([input]), vec![input]);
    let (mut below, mut compared): (Option<i64>, BTreeSet<i64>) = (None, BTreeSet::new());
    while let Some(tensor) = ahead.pop() {
        for used in model.consumers(tensor) {
            let (Some(node), Some(slot)) = (model.node(used.node), used.input) else { continue };
            if let Some(length) = table_length(model, node, slot) {
                below = Some(below.map_or(length, |b| b.min(length)));
            } else if node.is("Equal") {
                compared.extend(node.inputs().filter_map(|name| model.ints(name)).flatten().take(1 << 16));
            } else if node.is(node.op_type()) && PASSING.contains(&node.op_type()) && slot == 0 {
                ahead.extend(node.outputs().filter(|name| seen.insert(name)));
            }
        }
    }
    match below {
        Some(length) => Values::Below(length),
        None if compared.is_empty() => Values::Ones,
        None => Values::OneOf(compared.into_iter().collect()),
    }
}

/// Length of the table that a node looks an index up in, when this slot holds the index.
fn table_length(model: &Model, node: Node<'_>, slot: usize) -> Option<i64> {
    let length = |table: usize, axis: i64| {
        let dims = model.constant_dims(node.input(table)?)?;
        let axis = if axis < 0 { axis + i64::try_from(dims.len()).ok()? } else { axis };
        i64::try_from(*dims.get(usize::try_from(axis).ok()?)?).ok().filter(|&l| l > 0)
    };
    match (node.op_type(), slot) {
        ("Gather", 1) => length(0, node.int("axis").unwrap_or(0)),
        ("EmbedLayerNormalization", 0) => length(2, 0),
        ("EmbedLayerNormalization", 1) => length(4, 0),
        ("OneHot", 0) => model.ints(node.input(1)?)?.first().copied().filter(|&depth| depth > 0),
        _ => None,
    }
}

impl Source {
    fn shape_at(&self, rows: usize) -> Vec<usize> {
        let at = |length: &Length| match *length {
            Length::Batch => rows,
            Length::Fixed(length) => length,
        };
        self.shape.iter().map(at).collect()
    }

    fn tensor(&self, rows: usize, noise: &mut Noise) -> Result<Tensor, FeedError> {
        let shape = self.shape_at(rows);
        let count = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).filter(|&n| n <= MAX_ELEMENTS);
        let count = count.ok_or_else(|| FeedError::TooLarge { name: self.name.clone(), shape: shape.clone() })?;
        let mut ints = || (0..count).map(|_| self.values.pick(noise)).collect::<Vec<i64>>();
        let data = match self.element_type {
            DataType::Double => Element::Fp64((0..count).map(|_| noise.unit()).collect()),
            DataType::Int64 => Element::Int64(ints()),
            DataType::Int32 => Element::Int32(ints().into_iter().map(|v| i32::try_from(v).unwrap_or(1)).collect()),
            DataType::Uint8 if self.values == Values::Ones => Element::Uint8((0..count).map(|_| noise.next() as u8).collect()),
            DataType::Uint8 => Element::Uint8(ints().into_iter().map(|v| u8::try_from(v).unwrap_or(1)).collect()),
            DataType::Bool => Element::Bool(vec![1; count]),
            _ => Element::Fp32((0..count).map(|_| noise.unit() as f32).collect()),
        };
        Ok(Tensor::new(shape, data)?)
    }
}

impl Values {
    fn pick(&self, noise: &mut Noise) -> i64 {
        match self {
            Self::Below(length) => (noise.next() % length.unsigned_abs().max(1)) as i64,
            Self::OneOf(values) => values.get(noise.next() as usize % values.len().max(1)).copied().unwrap_or(1),
            Self::Ones => 1,
        }
    }
}

/// Reproducible noise: the multiplier of Knuth's MMIX, upper bits only.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Between -1 and 1.
    fn unit(&mut self) -> f64 {
        self.next() as f64 / f64::from(1u32 << 30) - 1.0
    }
}
