//! Which fused kernels are measured at which widths, and how times between them are read off.

use std::collections::BTreeMap;

use pleach_onnx::node_macs;

use super::{PlanItem, twins};
use crate::activation::Activation;
use crate::analysis::Analysis;
use crate::coupling::Units;
use crate::error::PruneError;
use crate::levels::widths;
use crate::network::{Kind, Layer, Network, Window};
use crate::solve::{Choice, Cost, Levels, Term};

/// Most kernels of one plan.
const MOST_KERNELS: usize = 80;
/// Most measured widths on one axis of a kernel.
const MOST_ANCHORS: usize = 4;
/// Groups that one layer's time is tabulated over; further ones count as dense.
const MOST_GROUPS: usize = 3;
/// Uniform shares at which whole networks are timed, besides dense and narrowest.
const WHOLE_SHARES: [f64; 2] = [0.75, 0.5];

/// Everything that a kernel's time depends on besides its widths.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub(super) form: Form,
    /// Height and width of the input; of a sequence its length and 1.
    pub(super) image: [usize; 2],
    pub(super) activation: bool,
}

/// What a kernel computes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// In so many groups.
    Conv(Window, usize),
    /// As many groups as channels.
    Depthwise(Window),
    /// A Gemm, or a MatMul on sequences.
    Linear,
}

/// One layer's place in the grid.
struct Place {
    shape: Shape,
    /// For each group that matters (by place in the problem), channels of the layer's input and output a unit stands for.
    groups: Vec<(usize, f64, f64)>,
    inputs: usize,
    outputs: usize,
    /// Measured widths on each axis.
    anchors: [Vec<usize>; 2],
    macs: u64,
    /// Parameters at given channels.
    taps: usize,
}

/// Layers, the widths groups may have, and the widths that are measured.
pub(super) struct Grid {
    widths: Vec<Vec<usize>>,
    places: Vec<Place>,
}

impl Grid {
    pub(super) fn new(network: &Network, step: usize) -> Self {
        let widths: Vec<Vec<usize>> = network.coupling.groups.iter().map(|g| widths(g.size, step)).collect();
        let mut places: Vec<Place> = network.layers.iter().map(|l| place(network, l)).collect();
        let mut anchors = MOST_ANCHORS;
        loop {
            choose_anchors(&mut places, &widths, anchors, u64::MAX);
            if anchors == 2 || count(&places) <= MOST_KERNELS {
                break;
            }
            // Thin out the cheapest layers first.
            let mut macs: Vec<u64> = places.iter().map(|p| p.macs).collect();
            macs.sort_unstable();
            for &bar in &macs {
                choose_anchors(&mut places, &widths, anchors, bar);
                if count(&places) <= MOST_KERNELS {
                    return Self { widths, places };
                }
            }
            anchors -= 1;
        }
        Self { widths, places }
    }

    /// Levels of each group with their losses.
    pub(super) fn levels(&self, analysis: &Analysis) -> Vec<Levels> {
        let levels = |(g, widths): (usize, &Vec<usize>)| Levels {
            widths: widths.clone(),
            losses: widths.iter().map(|&w| analysis.loss(g, w)).collect(),
        };
        self.widths.iter().enumerate().map(levels).collect()
    }

    /// Choices at which whole networks are timed: dense, uniform, narrowest; without repetition.
    pub(super) fn whole(&self) -> Vec<Choice> {
        let dense: Choice = self.widths.iter().map(|w| w.len() - 1).collect();
        let mut choices = vec![dense];
        for share in WHOLE_SHARES {
            let near = |w: &Vec<usize>| {
                let want = share * w.last().copied().unwrap_or(1) as f64;
                w.iter().position(|&w| w as f64 >= want).unwrap_or(w.len() - 1)
            };
            choices.push(self.widths.iter().map(near).collect());
        }
        choices.push(vec![0; self.widths.len()]);
        choices.dedup();
        choices
    }

    pub(super) fn widths_of(&self, choice: &Choice) -> Vec<usize> {
        self.widths.iter().zip(choice).map(|(w, &l)| w[l]).collect()
    }

    /// The kernels to be timed, each once.
    pub(super) fn kernels(&self, batch: usize) -> Result<Vec<PlanItem>, PruneError> {
        let mut items = BTreeMap::new();
        for place in &self.places {
            for (inputs, outputs) in place.pairs() {
                let key = twins::key(&place.shape, inputs, outputs, batch);
                if let std::collections::btree_map::Entry::Vacant(entry) = items.entry(key.clone()) {
                    entry.insert(PlanItem { key, model: twins::kernel(&place.shape, inputs, outputs, batch)? });
                }
            }
        }
        Ok(items.into_values().collect())
    }

    /// The layers' times as terms over the groups' levels; `us` gives the measured time of a key.
    pub(super) fn time_terms(&self, batch: usize, us: &impl Fn(&str) -> Result<f64, PruneError>) -> Result<Vec<Term>, PruneError> {
        let term = |place: &Place| {
            let mut measured = BTreeMap::new();
            for (i, o) in place.pairs() {
                measured.insert((i, o), us(&twins::key(&place.shape, i, o, batch))? / twins::REPEATS as f64);
            }
            Ok(self.term(place, |inputs, outputs| place.between(&measured, inputs, outputs)))
        };
        self.places.iter().map(term).collect()
    }

    /// Bytes of the encoded model, `dense` of them at full width.
    pub(super) fn size(&self, dense: usize) -> Cost {
        let bytes = |p: &Place, inputs: f64, outputs: f64| 4.0 * outputs * (1.0 + p.per_output(inputs) * p.taps as f64);
        let terms = self.places.iter().map(|p| self.term(p, |i, o| bytes(p, i, o))).collect();
        let full: f64 = self.places.iter().map(|p| bytes(p, p.inputs as f64, p.outputs as f64)).sum();
        Cost { constant: dense as f64 - full, terms }
    }

    fn term(&self, place: &Place, value: impl Fn(f64, f64) -> f64) -> Term {
        let groups: Vec<usize> = place.groups.iter().map(|g| g.0).collect();
        let mut table = Vec::new();
        let mut levels = vec![0; groups.len()];
        loop {
            let (mut inputs, mut outputs) = (place.inputs as f64, place.outputs as f64);
            for (&(g, per_input, per_output), &l) in place.groups.iter().zip(&levels) {
                let gone = self.widths[g].last().copied().unwrap_or(0) as f64 - self.widths[g][l] as f64;
                inputs -= gone * per_input;
                outputs -= gone * per_output;
            }
            table.push(value(inputs, outputs));
            let next = (0..levels.len()).rev().find(|&i| levels[i] + 1 < self.widths[groups[i]].len());
            let Some(next) = next else { return Term { groups, table } };
            levels[next] += 1;
            levels[next + 1..].fill(0);
        }
    }
}

impl Place {
    fn depthwise(&self) -> bool {
        matches!(self.shape.form, Form::Depthwise(_))
    }

    /// Input channels that one output is summed over.
    fn per_output(&self, inputs: f64) -> f64 {
        match self.shape.form {
            Form::Conv(_, groups) => inputs / groups as f64,
            Form::Depthwise(_) => 1.0,
            Form::Linear => inputs,
        }
    }

    /// Measured pairs of input and output channels.
    fn pairs(&self) -> Vec<(usize, usize)> {
        if self.depthwise() {
            return self.anchors[1].iter().map(|&c| (c, c)).collect();
        }
        self.anchors[0].iter().flat_map(|&i| self.anchors[1].iter().map(move |&o| (i, o))).collect()
    }

    /// Bilinear between the measured pairs.
    fn between(&self, measured: &BTreeMap<(usize, usize), f64>, inputs: f64, outputs: f64) -> f64 {
        let at = |i: usize, o: usize| measured.get(&(i, o)).copied().unwrap_or(0.0);
        let (o0, o1, v) = bracket(&self.anchors[1], outputs);
        if self.depthwise() {
            return at(o0, o0) * (1.0 - v) + at(o1, o1) * v;
        }
        let (i0, i1, u) = bracket(&self.anchors[0], inputs);
        let row = |i: usize| at(i, o0) * (1.0 - v) + at(i, o1) * v;
        row(i0) * (1.0 - u) + row(i1) * u
    }
}

/// The measured widths around a width, and how far it is from the first to the second.
fn bracket(anchors: &[usize], width: f64) -> (usize, usize, f64) {
    let high = anchors.iter().position(|&a| a as f64 >= width).unwrap_or(anchors.len().saturating_sub(1));
    let (low, high) = (anchors.get(high.saturating_sub(1)), anchors.get(high));
    let (Some(&low), Some(&high)) = (low, high) else { return (0, 0, 0.0) };
    let share = if high == low { 0.0 } else { (width - low as f64) / (high as f64 - low as f64) };
    (low, high, share.clamp(0.0, 1.0))
}

fn place(network: &Network, layer: &Layer) -> Place {
    let mut groups: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    let per_unit = |units: &Units| units.iter().map(<[usize]>::len).sum::<usize>() as f64 / units.len().max(1) as f64;
    for (group, units) in network.input_groups(layer) {
        groups.entry(group.id.0).or_default().0 += per_unit(units);
    }
    for (group, units) in network.output_groups(layer) {
        groups.entry(group.id.0).or_default().1 += per_unit(units);
    }
    let shape = Shape {
        form: match &layer.kind {
            Kind::Conv { window, .. } if layer.depthwise() => Form::Depthwise(window.clone()),
            Kind::Conv { window, groups } => Form::Conv(window.clone(), *groups),
            Kind::Linear { .. } => Form::Linear,
        },
        image: layer.image,
        activation: layer.activation != Activation::None,
    };
    let macs = network.model.node(layer.node).map_or(0, |n| node_macs(&network.model, n, &network.shapes, 1));
    let groups = groups.into_iter().map(|(g, (i, o))| (g, i, o)).take(MOST_GROUPS).collect();
    Place { shape, groups, inputs: layer.inputs, outputs: layer.outputs, anchors: [Vec::new(), Vec::new()], macs, taps: layer.taps }
}

/// Chooses the measured widths of every layer: `most` on an axis, two where the layer has at most `bar` multiply-accumulates.
fn choose_anchors(places: &mut [Place], widths: &[Vec<usize>], most: usize, bar: u64) {
    for place in places {
        let most = if bar != u64::MAX && place.macs <= bar { 2 } else { most };
        let axis = |dense: usize, per: fn(&(usize, f64, f64)) -> f64| {
            let mut reached = vec![dense];
            for group in place.groups.iter().filter(|g| per(g) > 0.0) {
                let full = widths[group.0].last().copied().unwrap_or(0);
                let narrowed = |base: usize| widths[group.0].iter().map(move |w| base - ((full - w) as f64 * per(group)).round() as usize);
                reached = reached.iter().flat_map(|&base| narrowed(base)).collect();
            }
            reached.sort_unstable();
            reached.dedup();
            spread(&reached, most)
        };
        place.anchors = [axis(place.inputs, |g| g.1), axis(place.outputs, |g| g.2)];
    }
}

/// At most `most` of the values, evenly, the first and the last among them.
fn spread(values: &[usize], most: usize) -> Vec<usize> {
    if values.len() <= most {
        return values.to_vec();
    }
    (0..most).filter_map(|i| values.get(i * (values.len() - 1) / (most - 1)).copied()).collect()
}

fn count(places: &[Place]) -> usize {
    let mut all: Vec<(&Shape, (usize, usize))> =
        places.iter().flat_map(|p| p.pairs().into_iter().map(move |pair| (&p.shape, pair))).collect();
    all.sort_unstable();
    all.dedup();
    all.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_hold_the_width() {
        assert_eq!(bracket(&[16, 32, 64], 48.0), (32, 64, 0.5));
        assert_eq!(bracket(&[16, 32, 64], 32.0), (16, 32, 1.0));
        assert_eq!(bracket(&[16, 32], 8.0), (16, 16, 0.0));
        assert_eq!(bracket(&[10], 10.0), (10, 10, 0.0));
    }

    #[test]
    fn spread_keeps_the_ends() {
        assert_eq!(spread(&[1, 2, 3, 4, 5, 6, 7, 8], 4), [1, 3, 5, 8]);
        assert_eq!(spread(&[1, 2], 4), [1, 2]);
    }
}
