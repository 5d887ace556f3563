//! An inspection as text for a terminal.

use std::fmt::Write;

use super::{Axis, Inspection, Port, Proof};
use crate::table::{bytes, count, plain};

/// Most rows of a table.
const MAX_ROWS: usize = 20;
/// Most characters of a name, and of a reason.
const MAX_NAME: usize = 44;
const MAX_REASON: usize = 100;
/// Cells of the bar that shows the prunable share.
const BAR_CELLS: usize = 30;

/// Renders an inspection of the model that the user calls `file`.
pub fn render(file: &str, inspection: &Inspection) -> String {
    let mut text = String::new();
    let mut part = |block: String| {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(block.trim_end());
    };
    part(heading(file, inspection));
    part(cost(inspection));
    part(operators(inspection));
    part(groups(inspection));
    part(frozen(inspection));
    if let Some(proof) = &inspection.proof {
        part(proofs(proof));
    }
    text
}

fn heading(file: &str, i: &Inspection) -> String {
    let opsets: Vec<String> = i.opsets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
    let producer = if i.producer.is_empty() { String::new() } else { format!(", by {}", i.producer) };
    let mut text = format!("{file}: {}, IR {}, {}{producer}\n", bytes(i.size_bytes), i.ir_version, opsets.join(", "));
    let rows = |what: &str, ports: &[Port]| {
        ports.iter().map(|p| vec![what.to_owned(), p.name.clone(), p.element_type.clone(), port_shape(p)]).collect::<Vec<_>>()
    };
    text.push_str(&plain(&[], [rows("takes", &i.inputs), rows("gives", &i.outputs)].concat()));
    text
}

/// A shape as declared and, where that leaves axes free, as it was measured.
pub(super) fn port_shape(port: &Port) -> String {
    let list = |axes: Vec<String>| format!("[{}]", axes.join(", "));
    let measured = port.measured.as_ref().map(|axes| list(axes.iter().map(usize::to_string).collect()));
    let declared = port.shape.as_ref().map(|axes| list(axes.iter().map(axis).collect()));
    match (declared, measured) {
        (Some(declared), Some(measured)) if declared != measured => format!("{declared}, here {measured}"),
        (Some(shape), _) | (None, Some(shape)) => shape,
        (None, None) => "of unknown shape".to_owned(),
    }
}

fn axis(axis: &Axis) -> String {
    match axis {
        Axis::Fixed(length) => length.to_string(),
        Axis::Free(symbol) if symbol.is_empty() => "?".to_owned(),
        Axis::Free(symbol) => symbol.clone(),
    }
}

fn cost(i: &Inspection) -> String {
    let filled = (i.prunable_macs_share * BAR_CELLS as f64).round() as usize;
    let bar: String = (0..BAR_CELLS).map(|cell| if cell < filled { '█' } else { '░' }).collect();
    let rows = [
        ("MACs", format!("{} at batch {}", count(i.macs), i.batch)),
        ("parameters", count(i.parameters)),
        ("activations", format!("{} at most at once", bytes(i.activation_bytes))),
        ("prunable", format!("{} of the MACs  {bar}", share(i.prunable_macs_share))),
    ];
    plain(&[], rows.into_iter().map(|(what, much)| vec![what.to_owned(), much]).collect())
}

fn operators(i: &Inspection) -> String {
    let rows = i.operators.iter().take(MAX_ROWS).map(|o| {
        let macs = if o.macs == 0 { String::new() } else { count(o.macs) };
        vec![o.operator.clone(), o.count.to_string(), macs]
    });
    table(
        &format!("{} nodes of {} operators", i.nodes, i.operators.len()),
        &["OPERATOR", "NODES", "MACS"],
        rows.collect(),
        i.operators.len(),
    )
}

fn groups(i: &Inspection) -> String {
    if i.groups.is_empty() {
        return "No group of channels can be removed.".to_owned();
    }
    let mut widest: Vec<_> = i.groups.iter().collect();
    widest.sort_by_key(|g| std::cmp::Reverse((g.size, g.macs)));
    let rows = widest.iter().take(MAX_ROWS).map(|g| {
        let layers = format!("{} make it, {} read it", g.producers.len(), g.consumers.len());
        vec![shortened(&g.name, MAX_NAME), g.size.to_string(), count(g.macs), count(g.parameters), layers]
    });
    let title = format!("{} groups of channels that go together, widest first", i.groups.len());
    table(&title, &["GROUP", "UNITS", "MACS", "PARAMETERS", "LAYERS"], rows.collect(), i.groups.len())
}

fn frozen(i: &Inspection) -> String {
    if i.frozen.is_empty() {
        return "Nothing is frozen.".to_owned();
    }
    let rows = i.frozen.iter().take(MAX_ROWS).map(|f| vec![shortened(&f.name, MAX_NAME), shortened(&f.reason, MAX_REASON)]);
    let mut text = table(&format!("{} frozen parts", i.frozen.len()), &["FROZEN", "WHY"], rows.collect(), i.frozen.len());
    if !i.frozen_by_reason.is_empty() {
        let rows = i
            .frozen_by_reason
            .iter()
            .take(MAX_ROWS)
            .map(|r| vec![share(r.macs_share), r.layers.to_string(), shortened(&r.reason, MAX_REASON)]);
        text.push_str("\n\n");
        text.push_str(&table("Work that stays", &["MACS", "LAYERS", "WHY"], rows.collect(), i.frozen_by_reason.len()));
    }
    text
}

fn proofs(proof: &Proof) -> String {
    let row = |what: &str, worst: f64, how: &str| {
        vec![what.to_owned(), format!("{worst:.1e}"), verdict(worst <= proof.bar).to_owned(), how.to_owned()]
    };
    let identity = if proof.identity { "same bytes" } else { "other bytes" };
    let rows = vec![
        vec!["identity".to_owned(), identity.to_owned(), verdict(proof.identity).to_owned(), "nothing removed".to_owned()],
        row("permutation", proof.permutation, "units of every group in another order"),
        row("mask", proof.mask, "cut to 25, 50 and 75 % of every group against zeros in its place"),
        row("optimisation", proof.optimization, "ONNX Runtime's optimised graph against the graph as written"),
        row("folding", proof.folding, "constants folded against the file"),
    ];
    let title = format!("Proofs: worst difference of an output, relative to its largest value, at most {:.0e}", proof.bar);
    table(&title, &["PROOF", "WORST", "", "COMPARES"], rows, 0)
}

fn verdict(holds: bool) -> &'static str {
    if holds { "holds" } else { "FAILS" }
}

/// A titled table, with a note when rows were left out.
fn table(title: &str, headers: &[&str], rows: Vec<Vec<String>>, all: usize) -> String {
    let shown = rows.len();
    let mut text = format!("{title}\n{}", plain(headers, rows));
    if all > shown {
        let _ = write!(text, "\n… and {} more: --output json lists all", all - shown);
    }
    text
}

/// A share as a percentage that rounds neither to all nor to nothing.
pub(super) fn share(share: f64) -> String {
    let percent = (share * 1000.0).round() / 10.0;
    let percent = if share < 1.0 { percent.min(99.9) } else { percent };
    let percent = if share > 0.0 { percent.max(0.1) } else { percent };
    format!("{percent:.1} %")
}

/// A name without its middle where it is too long.
pub(super) fn shortened(name: &str, most: usize) -> String {
    let length = name.chars().count();
    if length <= most {
        return name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    }
    let (head, tail) = (most / 2, most - most / 2 - 1);
    let middle: String = name.chars().take(head).chain(['…']).chain(name.chars().skip(length - tail)).collect();
    shortened(&middle, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_to_all_or_nothing_only_when_they_are() {
        assert_eq!([1.0, 0.99999, 0.5, 0.00001, 0.0].map(share), ["100.0 %", "99.9 %", "50.0 %", "0.1 %", "0.0 %"]);
    }

    #[test]
    fn long_names_lose_their_middle_and_control_characters() {
        assert_eq!(shortened("/encoder/layer.0/attention", 11), "/enco…ntion");
        assert_eq!(shortened("a\u{1b}[31mb", 20), "a [31mb");
    }
}
