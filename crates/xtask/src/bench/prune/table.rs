//! The bench as a table.

use comfy_table::{Table, presets};

use super::{Bench, Row};

pub(super) fn render(bench: &Bench) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "model",
        "asked",
        "p50",
        "p95",
        "min",
        "figure",
        "dense",
        "pruned",
        "lost",
        "bar",
        "bound",
        "predicted",
        "seconds",
        "MiB",
        "holds",
    ]);
    for row in &bench.rows {
        for (at, figure) in row.figures.iter().enumerate() {
            let first = |text: String| if at == 0 { text } else { String::new() };
            table.add_row([
                first(row.fixture.clone()),
                first(format!("{:.1}x", row.asked)),
                first(format!("{:.2}x", row.speedup_p50)),
                first(format!("{:.2}x", row.speedup_p95)),
                first(format!("{:.2}x", row.speedup_min)),
                figure.name.to_owned(),
                format!("{:.4}", figure.dense),
                format!("{:.4}", figure.pruned),
                format!("{:+.4}", figure.lost),
                figure.bar.map_or(String::new(), |b| format!("{b:.4}")),
                first(format!("{:+.4}", row.accuracy_lost_bound_95)),
                first(format!("{:+.1} %", (row.predicted_us / row.measured_us - 1.0) * 100.0)),
                first(format!("{:.1}", row.seconds)),
                first(format!("{}", row.peak_memory_bytes >> 20)),
                first(verdict(row)),
            ]);
        }
    }
    let mut text = format!("{table}\n\n");
    for row in &bench.rows {
        let stages: Vec<String> = row.stages.iter().map(|(stage, seconds)| format!("{stage} {seconds:.1}")).collect();
        text.push_str(&format!("{} at {:.1}x, seconds: {}\n", row.fixture, row.asked, stages.join(", ")));
    }
    if let Some(error) = bench.prediction_error {
        text.push_str(&format!("predicted against measured latency, median error: {:.1} %\n", error * 100.0));
    }
    if let Some(share) = bench.second_target_share {
        text.push_str(&format!("wall time of a second target, from the cache: {:.0} % of the first\n", share * 100.0));
    }
    for rival in &bench.rival {
        let beaten = if rival.beaten { "beaten: a variant above is as fast and loses less" } else { "not beaten by a variant above" };
        text.push_str(&format!(
            "onnxsim {}: {:.2}x, {} {:.4}, lost {:+.4}; {beaten}\n",
            rival.fixture,
            rival.speedup_p50,
            rival.figure,
            rival.pruned,
            rival.lost()
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
