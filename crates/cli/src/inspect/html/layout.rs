//! Where boxes and wires go: layers from top to bottom, few crossings, straight wires.
//!
//! Layers by longest path, long wires through places of their own in each layer they pass, order by barycentres (Sugiyama,
//! Tagawa, Toda, 1981), positions by least squares under the order (pool adjacent violators).

use std::collections::HashMap;

/// Space between neighbours in a layer.
const GAP: f64 = 22.0;
/// From one layer's top to the next one's.
pub(super) const LAYER_HEIGHT: f64 = 82.0;
/// Height of a box.
pub(super) const BOX_HEIGHT: f64 = 47.0;
/// Width that a wire needs where it passes a layer.
const LANE_WIDTH: f64 = 10.0;
/// How much more than a box a passing wire stays in line.
const LANE_WEIGHT: f64 = 4.0;
/// Sweeps over all layers, down and up in turn.
const SWEEPS: usize = 12;
/// Most places that wires take up; beyond, wires run straight.
const MAX_LANES: usize = 40_000;

/// Places of everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// Centre and top of each box.
    pub(super) boxes: Vec<(f64, f64)>,
    /// For each wire the points it passes, from box to box.
    pub(super) wires: Vec<Vec<(f64, f64)>>,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// A box, or a wire's place in a layer.
struct Place {
    width: f64,
    weight: f64,
    x: f64,
    above: Vec<usize>,
    below: Vec<usize>,
}

/// Lays out boxes of the given widths; `wires` lead from an earlier box to a later one.
pub(super) fn layout(widths: &[f64], wires: &[(usize, usize)]) -> Layout {
    let layer_of = layers(widths.len(), wires);
    let mut places: Vec<Place> = widths.iter().map(|&width| place(width, 1.0)).collect();
    let depth = layer_of.iter().max().map_or(0, |last| last + 1);
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); depth];
    for (index, &layer) in layer_of.iter().enumerate() {
        rows[layer].push(index);
    }
    let lanes: usize = wires.iter().map(|&(from, to)| (layer_of[to] - layer_of[from]).saturating_sub(1)).sum();
    let mut paths: Vec<Vec<usize>> = Vec::with_capacity(wires.len());
    for &(from, to) in wires {
        let mut path = vec![from];
        if lanes <= MAX_LANES {
            for row in &mut rows[layer_of[from] + 1..layer_of[to]] {
                row.push(places.len());
                path.push(places.len());
                places.push(place(LANE_WIDTH, LANE_WEIGHT));
            }
        }
        path.push(to);
        for pair in path.windows(2) {
            places[pair[0]].below.push(pair[1]);
            places[pair[1]].above.push(pair[0]);
        }
        paths.push(path);
    }
    order(&mut rows, &places);
    for sweep in 0..SWEEPS {
        align(&rows, &mut places, sweep % 2 == 0);
    }
    finish(widths, &layer_of, &places, &paths, depth)
}

fn place(width: f64, weight: f64) -> Place {
    Place { width, weight, x: 0.0, above: Vec::new(), below: Vec::new() }
}

/// The layer of each box: one below the lowest it reads; inputs directly above who reads them.
fn layers(boxes: usize, wires: &[(usize, usize)]) -> Vec<usize> {
    let mut sorted = wires.to_vec();
    sorted.sort_unstable_by_key(|&(from, to)| (to, from));
    let mut layer = vec![0; boxes];
    for &(from, to) in &sorted {
        layer[to] = layer[to].max(layer[from] + 1);
    }
    let mut highest: HashMap<usize, usize> = HashMap::new();
    let mut read = vec![false; boxes];
    for &(from, to) in &sorted {
        read[to] = true;
        let nearest = highest.entry(from).or_insert(usize::MAX);
        *nearest = (*nearest).min(layer[to]);
    }
    for (from, nearest) in highest {
        if !read[from] {
            layer[from] = nearest - 1;
        }
    }
    layer
}

/// Indices of all layers, from above or from below.
fn passes(layers: usize, down: bool) -> Vec<usize> {
    if down { (0..layers).collect() } else { (0..layers).rev().collect() }
}

/// Orders every layer by the mean position of its neighbours.
fn order(rows: &mut [Vec<usize>], places: &[Place]) {
    let mut position = vec![0.0; places.len()];
    let number = |row: &[usize], position: &mut [f64]| {
        for (i, &index) in row.iter().enumerate() {
            position[index] = (i as f64 + 0.5) / row.len() as f64;
        }
    };
    for row in rows.iter() {
        number(row, &mut position);
    }
    for sweep in 0..SWEEPS {
        let down = sweep % 2 == 0;
        for layer in passes(rows.len(), down) {
            let row = &mut rows[layer];
            let mean = |index: usize| {
                let near = if down { &places[index].above } else { &places[index].below };
                let sum: f64 = near.iter().map(|&n| position[n]).sum();
                if near.is_empty() { position[index] } else { sum / near.len() as f64 }
            };
            let mut keyed: Vec<(f64, usize)> = row.iter().map(|&index| (mean(index), index)).collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
            *row = keyed.into_iter().map(|(_, index)| index).collect();
            number(row, &mut position);
        }
    }
}

/// Moves each layer as near to its neighbours' places as order and widths allow.
fn align(rows: &[Vec<usize>], places: &mut [Place], down: bool) {
    for layer in passes(rows.len(), down) {
        let row = &rows[layer];
        let mut offset = 0.0;
        let mut offsets = Vec::with_capacity(row.len());
        for (i, &index) in row.iter().enumerate() {
            if i > 0 {
                offset += (places[row[i - 1]].width + places[index].width) / 2.0 + GAP;
            }
            offsets.push(offset);
        }
        let wanted = row.iter().zip(&offsets).map(|(&index, offset)| {
            let place = &places[index];
            let near = if down { &place.above } else { &place.below };
            let sum: f64 = near.iter().map(|&n| places[n].x).sum();
            let x = if near.is_empty() { place.x } else { sum / near.len() as f64 };
            (x - offset, place.weight)
        });
        let fitted = ascending(wanted.collect());
        for ((&index, offset), x) in row.iter().zip(&offsets).zip(fitted) {
            places[index].x = x + offset;
        }
    }
}

/// The ascending numbers nearest to weighted ones, by least squares.
fn ascending(wanted: Vec<(f64, f64)>) -> Vec<f64> {
    let mut pools: Vec<(f64, f64, usize)> = Vec::new();
    for (value, weight) in wanted {
        let mut pool = (value, weight, 1);
        while let Some(before) = pools.pop_if(|before| before.0 > pool.0) {
            let weight = before.1 + pool.1;
            pool = ((before.0 * before.1 + pool.0 * pool.1) / weight, weight, before.2 + pool.2);
        }
        pools.push(pool);
    }
    pools.into_iter().flat_map(|(value, _, count)| std::iter::repeat_n(value, count)).collect()
}

fn finish(widths: &[f64], layer_of: &[usize], places: &[Place], paths: &[Vec<usize>], depth: usize) -> Layout {
    let left = places.iter().map(|p| p.x - p.width / 2.0).fold(f64::INFINITY, f64::min);
    let right = places.iter().map(|p| p.x + p.width / 2.0).fold(f64::NEG_INFINITY, f64::max);
    let left = if left.is_finite() { left - GAP } else { 0.0 };
    let top = |layer: usize| layer as f64 * LAYER_HEIGHT + GAP;
    let x = |index: usize| places[index].x - left;
    let boxes: Vec<(f64, f64)> = (0..widths.len()).map(|index| (x(index), top(layer_of[index]))).collect();
    let wires = paths.iter().map(|path| {
        let (from, to) = (path[0], path[path.len() - 1]);
        let mut points = vec![(x(from), top(layer_of[from]) + BOX_HEIGHT)];
        for (i, &lane) in path[1..path.len() - 1].iter().enumerate() {
            let y = top(layer_of[from] + 1 + i);
            points.extend([(x(lane), y), (x(lane), y + BOX_HEIGHT)]);
        }
        points.push((x(to), top(layer_of[to])));
        points
    });
    let width = if right.is_finite() { right - left + GAP } else { 0.0 };
    Layout { wires: wires.collect(), boxes, width, height: top(depth) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_follow_the_longest_path_and_boxes_do_not_overlap() {
        let wires = [(0, 1), (1, 2), (0, 3), (2, 4), (3, 4), (0, 4)];
        let widths = [60.0, 120.0, 90.0, 200.0, 60.0];
        let layout = layout(&widths, &wires);
        let layer = |index: usize| ((layout.boxes[index].1 - GAP) / LAYER_HEIGHT) as usize;
        assert_eq!((0..5).map(layer).collect::<Vec<_>>(), [0, 1, 2, 1, 3]);
        let (a, b) = (layout.boxes[1].0, layout.boxes[3].0);
        assert!((a - b).abs() >= (120.0 + 200.0) / 2.0 + GAP - 1e-9, "{a} and {b}");
        for (index, (x, _)) in layout.boxes.iter().enumerate() {
            assert!(x - widths[index] / 2.0 >= 0.0 && x + widths[index] / 2.0 <= layout.width, "{index}");
        }
        assert_eq!(layout.wires[5].len(), 2 + 2 * 2, "a long wire has a place in each layer it passes");
    }

    #[test]
    fn nearest_ascending_numbers_pool_what_falls() {
        assert_eq!(ascending(vec![(1.0, 1.0), (4.0, 1.0), (2.0, 3.0), (9.0, 1.0)]), [1.0, 2.5, 2.5, 9.0]);
        assert_eq!(ascending(vec![]), Vec::<f64>::new());
    }

    #[test]
    fn nothing_has_no_size() {
        assert_eq!(layout(&[], &[]).width, 0.0);
    }
}
