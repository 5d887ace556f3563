//! The picture: boxes and wires as SVG, with what the page's script needs to move about in it.

use std::fmt::Write;

use pleach_prune::coupling::GroupId;

use super::boxes::{Block, Blocks, Kind, listed};
use super::escaped;
use super::layout::{BOX_HEIGHT, Layout, layout};
use crate::inspect::text::shortened;
use crate::table::count;

/// Narrowest box, and the width that the most multiply-accumulates add.
const MIN_WIDTH: f64 = 116.0;
const MAX_EXTRA: f64 = 230.0;
/// Width of a join.
const JOIN_WIDTH: f64 = 76.0;
/// Most stripes of one edge.
const MAX_STRIPES: usize = 12;
/// Height of the stripes that show what a box reads and gives.
const STRIPE: f64 = 6.0;
/// Mean width of a character, in pixels.
const CHARACTER: f64 = 6.9;

/// Draws the boxes of a model.
pub(super) fn draw(blocks: &Blocks) -> String {
    let most = blocks.blocks.iter().map(|b| b.macs).max().unwrap_or(0).max(1) as f64;
    let widths: Vec<f64> = blocks.blocks.iter().map(|b| width(b, most)).collect();
    let wires: Vec<(usize, usize)> = blocks.wires.iter().map(|w| (w.from, w.to)).collect();
    let layout = layout(&widths, &wires);
    let mut svg = format!(
        "<svg id=\"graph\" role=\"group\" aria-label=\"The model's graph\" width=\"{0:.0}\" height=\"{1:.0}\" viewBox=\"0 0 {0:.0} {1:.0}\">\
         <defs><pattern id=\"hatch\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
         <rect width=\"7\" height=\"7\" class=\"hatch-ground\"/><rect width=\"2.5\" height=\"7\" class=\"hatch-line\"/></pattern></defs>",
        layout.width, layout.height
    );
    for (wire, points) in blocks.wires.iter().zip(&layout.wires) {
        let classes: String = wire.groups.iter().map(|g| format!(" in-{}", g.0)).collect();
        let colour = wire.groups.first().map_or("plain".to_owned(), |g| format!("c{}", g.0));
        let _ = write!(svg, "<path class=\"wire {colour}{classes}\" d=\"{}\"/>", curve(points));
    }
    for (index, block) in blocks.blocks.iter().enumerate() {
        draw_box(&mut svg, index, block, widths[index], &layout);
    }
    svg.push_str("</svg>");
    svg
}

fn width(block: &Block, most: f64) -> f64 {
    match block.kind {
        Kind::Join => JOIN_WIDTH,
        Kind::Layer => MIN_WIDTH + MAX_EXTRA * (block.macs as f64 / most).sqrt(),
        Kind::Input | Kind::Output => MIN_WIDTH,
    }
}

/// A line through the points, vertical at each of them.
fn curve(points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (i, &(x, y)) in points.iter().enumerate() {
        let Some(&(px, py)) = i.checked_sub(1).and_then(|i| points.get(i)) else {
            let _ = write!(path, "M{x:.1} {y:.1}");
            continue;
        };
        if (px - x).abs() < 0.05 {
            let _ = write!(path, "V{y:.1}");
        } else {
            let middle = f64::midpoint(py, y);
            let _ = write!(path, "C{px:.1} {middle:.1} {x:.1} {middle:.1} {x:.1} {y:.1}");
        }
    }
    path
}

fn draw_box(svg: &mut String, index: usize, block: &Block, width: f64, layout: &Layout) {
    let (x, y) = layout.boxes[index];
    let left = x - width / 2.0;
    let kind = match block.kind {
        Kind::Input | Kind::Output => "port",
        Kind::Layer => "layer",
        Kind::Join => "join",
    };
    let tint = block.gives.first().map(|g| format!(" tinted c{}", g.0)).unwrap_or_default();
    let touched: String = block.reads.iter().chain(&block.gives).map(|g| format!(" in-{}", g.0)).collect();
    let _ = write!(
        svg,
        "<g class=\"box {kind}{tint}{touched}\" id=\"b{index}\" data-x=\"{x:.0}\" data-y=\"{y:.0}\" role=\"button\" tabindex=\"{}\" aria-label=\"{}\">\
         <rect class=\"body\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BOX_HEIGHT}\" rx=\"3\"/>",
        if index == 0 { 0 } else { -1 },
        escaped(&spoken(block)),
    );
    if block.kind == Kind::Layer {
        stripes(svg, &block.reads, left, y, width, false);
    }
    if block.kind != Kind::Output {
        stripes(svg, &block.gives, left, y + BOX_HEIGHT - STRIPE, width, block.gives.is_empty());
    }
    let room = ((width - 12.0) / CHARACTER) as usize;
    let (first, second) = (title(block), subtitle(block));
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\">{}</text>", y + 21.0, escaped(&shortened(&first, room)));
    let _ = write!(svg, "<text class=\"small\" x=\"{x:.1}\" y=\"{:.1}\">{}</text></g>", y + 35.0, escaped(&shortened(&second, room + 2)));
}

/// One stripe for each group, or a hatched one where what is given is frozen.
fn stripes(svg: &mut String, groups: &[GroupId], left: f64, y: f64, width: f64, hatched: bool) {
    if hatched {
        let _ = write!(svg, "<rect class=\"frozen\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{STRIPE}\"/>");
    }
    let shown = groups.len().min(MAX_STRIPES);
    for (i, group) in groups.iter().take(MAX_STRIPES).enumerate() {
        let part = width / shown as f64;
        let at = left + part * i as f64;
        let _ = write!(svg, "<rect class=\"stripe c{}\" x=\"{at:.1}\" y=\"{y:.1}\" width=\"{part:.1}\" height=\"{STRIPE}\"/>", group.0);
    }
}

/// `Conv 3×3 → 64`.
fn title(block: &Block) -> String {
    match block.kind {
        Kind::Input | Kind::Output => block.name.clone(),
        Kind::Join => block.operator.clone(),
        Kind::Layer => {
            let kernel: Vec<String> = block.weight.get(2..).unwrap_or_default().iter().map(usize::to_string).collect();
            let kernel = if kernel.is_empty() { String::new() } else { format!(" {}", kernel.join("×")) };
            let channels = if kernel.is_empty() { block.shape.last() } else { block.shape.get(1) };
            format!("{}{kernel}{}", block.operator, channels.map_or_else(String::new, |c| format!(" → {c}")))
        }
    }
}

fn subtitle(block: &Block) -> String {
    match block.kind {
        Kind::Input | Kind::Output => block.operator.clone(),
        Kind::Join => listed(&block.then),
        Kind::Layer if block.then.is_empty() => count(block.macs),
        Kind::Layer => format!("{} · {}", count(block.macs), listed(&block.then)),
    }
}

/// What is read out.
fn spoken(block: &Block) -> String {
    let mut text = format!("{} {}", title(block), block.name);
    if block.macs > 0 {
        let _ = write!(text, ", {} MACs", count(block.macs));
    }
    if let Some(reason) = block.frozen.as_ref().filter(|_| block.gives.is_empty()) {
        let _ = write!(text, ", frozen: {reason}");
    }
    text
}
