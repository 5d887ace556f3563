//! An inspection as one self-contained page: a picture of the graph, its groups beside it, tables below. It asks for nothing from
//! anywhere, and says so to the browser; every foreign text in it is escaped.

mod boxes;
mod layout;
mod picture;

use std::collections::BTreeMap;
use std::fmt::Write;

use pleach_onnx::statistics;
use serde::Serialize;

use self::boxes::{Blocks, listed};
use super::text::{port_shape, share, shortened};
use super::{Inspection, Port, Proof, Subject};
use crate::table::{bytes, count};

const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");
/// Turn of the colour wheel from one group to the next: the golden angle, so that neighbours differ.
const TURN_DEGREES: f64 = 137.508;
/// Most characters of a group's name in the list.
const MAX_NAME: usize = 42;

/// Renders the page of the model that the user calls `file`.
pub fn render(file: &str, subject: &Subject, inspection: &Inspection) -> String {
    let cost = statistics(&subject.model, &subject.shapes, subject.batch);
    let blocks = boxes::blocks(subject, &cost.node_macs);
    let title = escaped(file);
    let mut colours = String::new();
    for group in &inspection.groups {
        let hue = (group.id as f64 * TURN_DEGREES + 210.0) % 360.0;
        let _ = write!(colours, ".c{}{{--hue:{hue:.0}}}", group.id);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <title>{title} – Pleach</title>\n<style>\n{STYLE}{colours}\n</style>\n</head>\n<body>\n\
         {header}\n<main>\n{picture}\n{aside}\n</main>\n<div class=\"tables\">\n{tables}</div>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>",
        header = header(file, inspection),
        picture = picture(&blocks),
        aside = aside(inspection),
        tables = tables(inspection),
        data = data(&blocks, inspection),
    )
}

/// Text that may stand anywhere in a page.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn header(file: &str, i: &Inspection) -> String {
    let opsets: Vec<String> = i.opsets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
    let producer = if i.producer.is_empty() { String::new() } else { format!(" · {}", i.producer) };
    let note = format!("{} · IR {} · {}{producer}", bytes(i.size_bytes), i.ir_version, opsets.join(", "));
    let mut cards = String::new();
    let mut card = |what: &str, much: &str, more: &str| {
        let _ = write!(cards, "<div class=\"card\"><dt>{what}</dt><dd>{much}<small>{more}</small></dd></div>", more = escaped(more));
    };
    card("Prunable", &share(i.prunable_macs_share), "of the MACs");
    card("MACs", &count(i.macs), &format!("at batch {}", i.batch));
    card("Parameters", &count(i.parameters), "");
    card("Activations", &bytes(i.activation_bytes), "at most at once");
    card("Groups", &i.groups.len().to_string(), &format!("{} frozen parts", i.frozen.len()));
    if let Some(proof) = &i.proof {
        let verdict = if proof.holds() { "<span class=\"good\">hold</span>" } else { "<span class=\"bad\">fail</span>" };
        card("Proofs", verdict, &format!("mask {:.0e}, permutation {:.0e}", proof.mask, proof.permutation));
    }
    format!("<header>\n<h1>{}</h1>\n<p>{}</p>\n<dl class=\"cards\">{cards}</dl>\n</header>", escaped(file), escaped(&note))
}

fn picture(blocks: &Blocks) -> String {
    let left_out = match blocks.left_out {
        0 => String::new(),
        more => format!("<p class=\"note\">{more} more layers and joins are not drawn.</p>"),
    };
    format!(
        "<section class=\"picture\" aria-label=\"Picture\">\n<div class=\"bar\"><p class=\"legend\">\
         Box width: work · upper stripe: channels read, lower: channels given, in the group's colour \
         <span class=\"swatch hatched\"></span> frozen</p>\
         <div class=\"zoom\"><button type=\"button\" id=\"out\" aria-label=\"Smaller\">−</button>\
         <button type=\"button\" id=\"fit\">Fit</button><button type=\"button\" id=\"in\" aria-label=\"Larger\">+</button></div></div>\n\
         <div class=\"scroll\" id=\"scroll\">{}</div>\n{left_out}</section>",
        picture::draw(blocks)
    )
}

fn aside(i: &Inspection) -> String {
    let most = i.groups.iter().map(|g| g.macs).max().unwrap_or(0).max(1) as f64;
    let mut rows = String::new();
    for g in &i.groups {
        let _ = write!(
            rows,
            "<li><button type=\"button\" class=\"group c{id}\" data-group=\"{id}\" aria-pressed=\"false\" title=\"{full}\">\
             <span class=\"swatch\"></span><span class=\"name\">{name}</span>\
             <span class=\"meter\"><span style=\"width:{part:.1}%\"></span></span><span class=\"much\">{size} units · {macs}</span></button></li>",
            id = g.id,
            full = escaped(&g.name),
            name = escaped(&shortened(&g.name, MAX_NAME)),
            size = g.size,
            part = g.macs as f64 / most * 100.0,
            macs = count(g.macs),
        );
    }
    let list = if rows.is_empty() {
        "<p class=\"note\">No group of channels can be removed.</p>".to_owned()
    } else {
        format!("<ul id=\"groups\">{rows}</ul>")
    };
    format!(
        "<aside>\n<section id=\"details\" aria-live=\"polite\" aria-label=\"Details\"><p class=\"note\">Point at a box, or reach the picture \
         with Tab and walk with the arrow keys. Enter shows the box's groups alone, Escape everything.</p></section>\n\
         <section class=\"groups\" aria-label=\"Groups\"><h2>Groups <small>units, MACs of the layers they narrow</small></h2>\
         <input id=\"filter\" type=\"search\" placeholder=\"Filter by name\" aria-label=\"Filter groups by name\">{list}</section>\n</aside>"
    )
}

fn tables(i: &Inspection) -> String {
    let mut out = String::new();
    let frozen = i.frozen.iter().map(|f| [escaped(&f.name), escaped(&f.reason)]);
    out.push_str(&table("Frozen", ["Part", "Why it stays"], frozen));
    if !i.frozen_by_reason.is_empty() {
        let rows = i.frozen_by_reason.iter().map(|r| [share(r.macs_share), r.layers.to_string(), escaped(&r.reason)]);
        out.push_str(&table("Work that stays", ["MACs", "Layers", "Why"], rows));
    }
    let operators =
        i.operators.iter().map(|o| [escaped(&o.operator), o.count.to_string(), if o.macs == 0 { String::new() } else { count(o.macs) }]);
    out.push_str(&table("Operators", ["Operator", "Nodes", "MACs"], operators));
    let port = |way: &str, p: &Port| [way.to_owned(), escaped(&p.name), escaped(&p.element_type), escaped(&port_shape(p))];
    let ports = i.inputs.iter().map(|p| port("takes", p)).chain(i.outputs.iter().map(|p| port("gives", p)));
    out.push_str(&table("Inputs and outputs", ["", "Name", "Type", "Shape"], ports));
    if let Some(proof) = &i.proof {
        out.push_str(&proofs(proof));
    }
    out
}

fn proofs(proof: &Proof) -> String {
    let row = |what: &str, holds: bool, worst: String| {
        let verdict = if holds { "<span class=\"good\">holds</span>" } else { "<span class=\"bad\">fails</span>" };
        [what.to_owned(), worst, verdict.to_owned()]
    };
    let number = |what, worst: f64| row(what, worst <= proof.bar, format!("{worst:.1e}"));
    let rows = [
        row("Nothing removed, same bytes", proof.identity, String::new()),
        number("Units of every group in another order", proof.permutation),
        number("Cut to 25, 50 and 75 % of every group against zeros in its place", proof.mask),
        number("ONNX Runtime's optimised graph against the graph as written", proof.optimization),
        number("Constants folded against the file", proof.folding),
    ];
    table(&format!("Proofs, at most {:.0e} of an output's largest value", proof.bar), ["Proof", "Worst", ""], rows.into_iter())
}

/// A table of cells that are escaped already.
fn table<const N: usize>(title: &str, headers: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let head: String = headers.iter().map(|h| format!("<th scope=\"col\">{h}</th>")).collect();
    let body: String = rows.map(|row| format!("<tr>{}</tr>", row.map(|cell| format!("<td>{cell}</td>")).concat())).collect();
    if body.is_empty() {
        return String::new();
    }
    format!(
        "<section><h2>{title}</h2><div class=\"wide\"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>\n"
    )
}

/// What the script shows of one box.
#[derive(Serialize)]
struct Detail<'a> {
    name: &'a str,
    facts: Vec<(&'static str, String)>,
    reads: Vec<usize>,
    gives: Vec<usize>,
    frozen: Option<&'a str>,
}

#[derive(Serialize)]
struct Data<'a> {
    boxes: Vec<Detail<'a>>,
    groups: BTreeMap<usize, (&'a str, usize)>,
}

/// The script's data; no text in it can end the element it stands in.
fn data(blocks: &Blocks, i: &Inspection) -> String {
    let list = |axes: &[usize]| axes.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
    let boxes = blocks.blocks.iter().map(|b| {
        let mut facts = vec![("operator", b.operator.clone())];
        let mut fact = |what, text: String| {
            if !text.is_empty() {
                facts.push((what, text))
            }
        };
        fact("then", listed(&b.then));
        fact(
            "MACs",
            if b.macs > 0 { format!("{} ({})", count(b.macs), share(b.macs as f64 / i.macs.max(1) as f64)) } else { String::new() },
        );
        fact("weight", list(&b.weight));
        fact("gives", list(&b.shape));
        let ids = |groups: &[pleach_prune::coupling::GroupId]| groups.iter().map(|g| g.0).collect();
        let frozen = b.frozen.as_deref().filter(|_| b.gives.is_empty());
        Detail { name: &b.name, facts, reads: ids(&b.reads), gives: ids(&b.gives), frozen }
    });
    let groups = i.groups.iter().map(|g| (g.id, (g.name.as_str(), g.size))).collect();
    let json = serde_json::to_string(&Data { boxes: boxes.collect(), groups }).unwrap_or_default();
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_place() {
        assert_eq!(escaped("<b a='1' b=\"2\">&\u{1b}"), "&lt;b a=&#39;1&#39; b=&quot;2&quot;&gt;&amp; ");
    }
}
