//! Which fused kernels are measured at which widths, and how times between them are read off.

use std::collections::{BTreeMap, BTreeSet};

use pleach_onnx::node_macs;

use super::{PlanItem, twins};
use crate::activation::Activation;
use crate::coupling::Units;
use crate::error::PruneError;
use crate::flat;
use crate::levels::{Level, Place as Where, Site, sites};
use crate::lowrank::{Rank, Split, halves};
use crate::network::{Kind, Layer, Network, Window};
use crate::solve::{Choice, Cost, Term};

/// Most kernels of one plan, as long as that leaves more than two widths on an axis.
const MOST_KERNELS: usize = 160;
/// Most measured widths on one axis of a kernel.
const MOST_ANCHORS: usize = 4;
/// Groups that one layer's time is tabulated over; further ones count as dense.
const MOST_GROUPS: usize = 3;
/// Most constants that one layer's time is tabulated over.
const MOST_KILLERS: usize = 2;
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

/// What of a layer a kernel stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Whole,
    First(Split),
    Second(Split),
}

/// A kernel that a layer may need, and the pairs of widths it is measured at.
type Kernel = (Part, Shape, Vec<(usize, usize)>);

/// One layer's place in the grid.
struct Place {
    shape: Shape,
    /// For each group that matters (by number), channels of the layer's input and output a unit stands for.
    groups: Vec<(usize, f64, f64)>,
    /// Sites at which a constant makes the layer dead.
    killers: Vec<usize>,
    /// Site at which the layer's rank is chosen.
    rank: Option<usize>,
    inputs: usize,
    outputs: usize,
    /// Measured pairs of input and output channels.
    anchors: [Vec<usize>; 2],
    macs: u64,
    /// Columns of one input channel.
    taps: usize,
}

/// Layers, the levels of every site, and the widths that are measured.
pub(super) struct Grid {
    pub(super) sites: Vec<Site>,
    places: Vec<Place>,
}

impl Grid {
    pub(super) fn new(network: &Network, step: usize) -> Self {
        let sites = sites(network, step);
        let dead: Vec<(usize, BTreeSet<usize>)> = (sites.iter().enumerate().filter(|(_, s)| s.levels.contains(&Level::Flat)))
            .filter_map(|(i, _)| Some((i, flat::dead_layers(network, &flat::readers(network, network.coupling.groups.get(i)?)?))))
            .collect();
        let mut places: Vec<Place> = network.layers.iter().enumerate().map(|(i, l)| place(network, &sites, &dead, i, l)).collect();
        let mut anchors = MOST_ANCHORS;
        loop {
            choose_anchors(&mut places, &sites, anchors, u64::MAX);
            if anchors == 2 || count(&places, &sites) <= MOST_KERNELS {
                break;
            }
            // Thin out the cheapest layers first.
            let mut macs: Vec<u64> = places.iter().map(|p| p.macs).collect();
            macs.sort_unstable();
            for &bar in &macs {
                choose_anchors(&mut places, &sites, anchors, bar);
                if count(&places, &sites) <= MOST_KERNELS {
                    return Self { sites, places };
                }
            }
            anchors -= 1;
        }
        Self { sites, places }
    }

    /// Choices at which whole networks are timed: dense, uniform, narrowest; without repetition.
    pub(super) fn whole(&self) -> Vec<Choice> {
        let narrowed = |least: &dyn Fn(&Site, Level) -> bool| -> Choice {
            let level = |s: &Site| match s.place {
                Where::Group(_) => s.levels.iter().position(|&l| least(s, l)).unwrap_or(s.levels.len() - 1),
                Where::Layer(_) => s.levels.len() - 1,
            };
            self.sites.iter().map(level).collect()
        };
        let mut choices = vec![dense(&self.sites)];
        for share in WHOLE_SHARES {
            choices.push(narrowed(&|s, l| s.left(l) as f64 >= share * s.size as f64));
        }
        choices.push(narrowed(&|_, l| l != Level::Flat));
        choices.dedup();
        choices
    }

    /// The kernels to be timed, each once.
    pub(super) fn kernels(&self, batch: usize) -> Result<Vec<PlanItem>, PruneError> {
        let mut items = BTreeMap::new();
        for (_, shape, pairs) in self.places.iter().flat_map(|p| p.kernels(&self.sites)) {
            for (inputs, outputs) in pairs {
                let key = twins::key(&shape, inputs, outputs, batch);
                if let std::collections::btree_map::Entry::Vacant(entry) = items.entry(key.clone()) {
                    entry.insert(PlanItem { key, model: twins::kernel(&shape, inputs, outputs, batch)? });
                }
            }
        }
        Ok(items.into_values().collect())
    }

    /// The layers' times as terms over the sites' levels; `us` gives the measured time of a key.
    pub(super) fn time_terms(&self, batch: usize, us: &impl Fn(&str) -> Result<f64, PruneError>) -> Result<Vec<Term>, PruneError> {
        let term = |place: &Place| {
            let mut measured = BTreeMap::new();
            for (part, shape, pairs) in place.kernels(&self.sites) {
                let time = |&(i, o): &(usize, usize)| Ok(((i, o), us(&twins::key(&shape, i, o, batch))? / twins::REPEATS as f64));
                measured.insert(part, Surface::new(pairs.iter().map(time).collect::<Result<_, PruneError>>()?));
            }
            let at = |part: Part, i: f64, o: f64| measured.get(&part).map_or(0.0, |m: &Surface| m.at(i, o));
            Ok(self.term(place, |inputs, outputs, rank| match rank {
                Some(Rank { split, channels }) => {
                    let between = channels as f64;
                    at(Part::First(split), inputs, between) + at(Part::Second(split), between, outputs)
                }
                None => at(Part::Whole, inputs, outputs),
            }))
        };
        self.places.iter().map(term).collect()
    }

    /// Bytes of the encoded model, `dense` of them at full width.
    pub(super) fn size(&self, dense: usize) -> Cost {
        let bytes = |p: &Place, inputs: f64, outputs: f64, rank: Option<Rank>| {
            let columns = p.per_output(inputs) * p.taps as f64;
            match (rank.map(|r| (r.split, r.channels as f64)), p.window()) {
                (Some((Split::Pointwise, rank)), _) => 4.0 * (rank * columns + outputs * (1.0 + rank)),
                (Some((Split::Separable, rank)), Some(window)) => {
                    let [height, width] = window.kernel.map(|k| k as f64);
                    4.0 * (rank * height * inputs + outputs * (1.0 + width * rank))
                }
                (Some((Split::Separable, _)) | None, _) => 4.0 * outputs * (1.0 + columns),
            }
        };
        let terms = self.places.iter().map(|p| self.term(p, |i, o, r| bytes(p, i, o, r))).collect();
        let full: f64 = self.places.iter().map(|p| bytes(p, p.inputs as f64, p.outputs as f64, None)).sum();
        Cost { constant: dense as f64 - full, terms }
    }

    fn term(&self, place: &Place, value: impl Fn(f64, f64, Option<Rank>) -> f64) -> Term {
        let extra = place.killers.iter().copied().filter(|k| place.groups.iter().all(|g| g.0 != *k));
        let sites: Vec<usize> = place.groups.iter().map(|g| g.0).chain(extra).chain(place.rank).collect();
        let mut table = Vec::new();
        let mut levels = vec![0; sites.len()];
        loop {
            let (mut inputs, mut outputs) = (place.inputs as f64, place.outputs as f64);
            for (&(g, per_input, per_output), &l) in place.groups.iter().zip(&levels) {
                let site = &self.sites[g];
                let gone = (site.size - site.left(site.levels[l])) as f64;
                inputs -= gone * per_input;
                outputs -= gone * per_output;
            }
            let rank = place.rank.zip(levels.last()).and_then(|(site, &l)| match self.sites[site].levels[l] {
                Level::Rank(rank) => place.window().is_some_and(|w| rank.pays(w, inputs, outputs)).then_some(rank),
                Level::Keep | Level::Width(_) | Level::Flat => None,
            });
            let dead = sites.iter().zip(&levels).any(|(&s, &l)| place.killers.contains(&s) && self.sites[s].levels[l] == Level::Flat);
            table.push(if dead || inputs <= 0.0 || outputs <= 0.0 { 0.0 } else { value(inputs, outputs, rank) });
            let next = (0..levels.len()).rev().find(|&i| levels[i] + 1 < self.sites[sites[i]].levels.len());
            let Some(next) = next else { return Term { sites, table } };
            levels[next] += 1;
            levels[next + 1..].fill(0);
        }
    }
}

/// The choice in which everything stays.
pub(super) fn dense(sites: &[Site]) -> Choice {
    sites.iter().map(|s| s.levels.len() - 1).collect()
}

impl Place {
    fn depthwise(&self) -> bool {
        matches!(self.shape.form, Form::Depthwise(_))
    }

    fn window(&self) -> Option<&Window> {
        match &self.shape.form {
            Form::Conv(window, _) | Form::Depthwise(window) => Some(window),
            Form::Linear => None,
        }
    }

    /// Input channels that one output is summed over.
    fn per_output(&self, inputs: f64) -> f64 {
        match self.shape.form {
            Form::Conv(_, groups) => inputs / groups as f64,
            Form::Depthwise(_) => 1.0,
            Form::Linear => inputs,
        }
    }

    /// The kernels that the layer may become and the widths they are measured at: itself, and its two factors each way to split it.
    fn kernels(&self, sites: &[Site]) -> Vec<Kernel> {
        let cross = |a: &[usize], b: &[usize]| a.iter().flat_map(|&i| b.iter().map(move |&o| (i, o))).collect::<Vec<_>>();
        let [inputs, outputs] = &self.anchors;
        let pairs = if self.depthwise() { outputs.iter().map(|&c| (c, c)).collect() } else { cross(inputs, outputs) };
        let mut kernels = vec![(Part::Whole, self.shape.clone(), pairs)];
        let (Some(site), Form::Conv(window, _)) = (self.rank, &self.shape.form) else { return kernels };
        for split in [Split::Pointwise, Split::Separable] {
            let of = |level: &Level| match level {
                Level::Rank(rank) if rank.split == split => Some(rank.channels),
                Level::Rank(_) | Level::Keep | Level::Width(_) | Level::Flat => None,
            };
            let ends = spread(&sites[site].levels.iter().filter_map(of).collect::<Vec<_>>(), 2);
            if ends.is_empty() {
                continue;
            }
            let (windows, between) = match split {
                Split::Pointwise => {
                    let plain = Window { kernel: [1, 1], strides: [1, 1], pads: [0; 4], dilations: [1, 1] };
                    ([window.clone(), plain], window.over(self.shape.image))
                }
                Split::Separable => halves(window, self.shape.image),
            };
            let [first, second] = windows.map(|w| Form::Conv(w, 1));
            let first = Shape { form: first, image: self.shape.image, activation: false };
            kernels.push((Part::First(split), first, cross(&spread(inputs, 2), &ends)));
            let second = Shape { form: second, image: between, activation: self.shape.activation };
            kernels.push((Part::Second(split), second, cross(&ends, &spread(outputs, 2))));
        }
        kernels
    }
}

/// Times measured at pairs of widths, bilinear between them.
struct Surface {
    measured: BTreeMap<(usize, usize), f64>,
    axes: [Vec<usize>; 2],
    /// Both widths are one.
    diagonal: bool,
}

impl Surface {
    fn new(measured: BTreeMap<(usize, usize), f64>) -> Self {
        let axis = |pick: fn(&(usize, usize)) -> usize| {
            let mut widths: Vec<usize> = measured.keys().map(pick).collect();
            widths.sort_unstable();
            widths.dedup();
            widths
        };
        let axes = [axis(|p| p.0), axis(|p| p.1)];
        let diagonal = measured.len() < axes[0].len() * axes[1].len();
        Self { measured, axes, diagonal }
    }

    fn at(&self, inputs: f64, outputs: f64) -> f64 {
        let at = |i: usize, o: usize| self.measured.get(&(i, o)).copied().unwrap_or(0.0);
        let (o0, o1, v) = bracket(&self.axes[1], outputs);
        if self.diagonal {
            return at(o0, o0) * (1.0 - v) + at(o1, o1) * v;
        }
        let (i0, i1, u) = bracket(&self.axes[0], inputs);
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

fn place(network: &Network, sites: &[Site], dead: &[(usize, BTreeSet<usize>)], index: usize, layer: &Layer) -> Place {
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
    let rank = sites.iter().position(|s| s.place == Where::Layer(index));
    let anchors = [Vec::new(), Vec::new()];
    let killers = dead.iter().filter(|(_, layers)| layers.contains(&index)).map(|(site, _)| *site).take(MOST_KILLERS).collect();
    Place { shape, groups, killers, rank, inputs: layer.inputs, outputs: layer.outputs, anchors, macs, taps: layer.taps }
}

/// Chooses the measured widths of every layer: `most` on an axis, two where the layer has at most `bar` multiply-accumulates.
fn choose_anchors(places: &mut [Place], sites: &[Site], most: usize, bar: u64) {
    for place in places {
        let most = if bar != u64::MAX && place.macs <= bar { 2 } else { most };
        let axis = |dense: usize, per: fn(&(usize, f64, f64)) -> f64| {
            let mut reached = vec![dense];
            for group in place.groups.iter().filter(|g| per(g) > 0.0) {
                let site = &sites[group.0];
                let narrowed = |base: usize| {
                    let gone = |&l: &Level| ((site.size - site.left(l)) as f64 * per(group)).round() as usize;
                    site.levels.iter().filter(|l| **l != Level::Flat).map(move |l| base.saturating_sub(gone(l)))
                };
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

fn count(places: &[Place], sites: &[Site]) -> usize {
    let mut all: Vec<(Shape, (usize, usize))> = places
        .iter()
        .flat_map(|p| p.kernels(sites))
        .flat_map(|(_, shape, pairs)| pairs.into_iter().map(move |p| (shape.clone(), p)))
        .collect();
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
