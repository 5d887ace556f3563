//! The bench as a table.

use comfy_table::{Table, presets};

use super::{Bench, Row};

pub(super) fn render(bench: &Bench) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["model", "asked", "p50", "min", "figure", "dense", "pruned", "lost", "bar", "bound", "seconds", "MiB", "holds"]);
    for row in &bench.rows {
        for (at, figure) in row.figures.iter().enumerate() {
            let first = |text: String| if at == 0 { text } else { String::new() };
            table.add_row([
                first(row.fixture.clone()),
                first(format!("{:.1}x", row.asked)),
                first(format!("{:.2}x", row.speedup_p50)),
                first(format!("{:.2}x", row.speedup_min)),
                figure.name.to_owned(),
                format!("{:.4}", figure.dense),
                format!("{:.4}", figure.pruned),
                format!("{:+.4}", figure.lost),
                figure.bar.map_or(String::new(), |b| format!("{b:.4}")),
                first(format!("{:+.4}", row.accuracy_lost_bound_95)),
                first(format!("{:.1}", row.seconds)),
                first(format!("{}", row.peak_memory_bytes >> 20)),
                first(verdict(row)),
            ]);
        }
    }
    let mut text = format!("{table}\n\n");
    text.push_str(&format!("predicted against measured latency, median error: {:.1} %\n", bench.prediction_error * 100.0));
    text.push_str(&format!("wall time of a second target, from the cache: {:.0} % of the first\n", bench.second_target_share * 100.0));
    for rival in &bench.rival {
        let lost = rival.dense - rival.pruned;
        text.push_str(&format!(
            "onnxsim {}: {:.2}x, {} {:.4}, lost {lost:+.4}\n",
            rival.fixture, rival.speedup_p50, rival.figure, rival.pruned
        ));
    }
    text
}

fn verdict(row: &Row) -> String {
    match &row.missed {
        Some(reason) => format!("no: {}", reason.chars().take(80).collect::<String>()),
        None if row.holds => "yes".to_owned(),
        None => "no".to_owned(),
    }
}
