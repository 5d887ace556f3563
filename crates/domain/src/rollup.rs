//! Telemetry added up over spans of time. Adding is exact and its order does not matter, so late data go where they belong.

use std::collections::BTreeMap;

use crate::histogram::LatencyHistogram;
use crate::id::{ClassId, DeviceId, Digest};
use crate::metrics::Confusion;
use crate::state::Span;
use crate::window::Window;

/// Whose telemetry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// One device.
    Device(DeviceId),
    /// All devices of a class.
    Class(ClassId),
}

/// What one roll-up is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Whose.
    pub subject: Subject,
    /// Over how long.
    pub span: Span,
    /// Begin of the span, milliseconds since 1970 UTC.
    pub start_ms: i64,
    /// The bundle that ran.
    pub bundle: Digest,
    /// The rung that ran.
    pub rung: String,
}

/// Windows added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Windows.
    pub windows: u64,
    /// Requests answered or failed.
    pub requests: u64,
    /// Requests failed.
    pub errors: u64,
    /// Labelled samples.
    pub labelled: u64,
    /// Of these, answered right.
    pub correct: u64,
    /// CPU time that inference used, in microseconds.
    pub cpu_us: u64,
    /// Most resident memory, in bytes.
    pub max_memory_bytes: u64,
    /// Latency of the answered requests.
    pub latency: LatencyHistogram,
}

impl Span {
    /// Its length in milliseconds.
    pub const fn length_ms(self) -> i64 {
        match self {
            Self::Minute => 60_000,
            Self::Hour => 3_600_000,
            Self::Day => 86_400_000,
        }
    }

    /// Begin of the span that a time falls in.
    pub fn start_ms(self, at_ms: i64) -> i64 {
        at_ms - at_ms.rem_euclid(self.length_ms())
    }
}

impl Sums {
    /// The sums of one window.
    pub fn of(window: &Window) -> Self {
        Self {
            windows: 1,
            requests: window.requests,
            errors: window.errors,
            labelled: window.confusion.as_ref().map_or(0, Confusion::total),
            correct: window.confusion.as_ref().map_or(0, Confusion::correct),
            cpu_us: window.cpu_us,
            max_memory_bytes: window.memory_bytes,
            latency: window.latency.clone(),
        }
    }

    /// Adds others. Counts that no device can honestly reach stay at their largest value.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.windows, other.windows),
            (&mut self.requests, other.requests),
            (&mut self.errors, other.errors),
            (&mut self.labelled, other.labelled),
            (&mut self.correct, other.correct),
            (&mut self.cpu_us, other.cpu_us),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.max_memory_bytes = self.max_memory_bytes.max(other.max_memory_bytes);
        self.latency.merge(&other.latency);
    }
}

/// The roll-ups that a window belongs to: its device's by hour and day (its minutes are the windows themselves), its class's by minute,
/// hour and day.
pub fn keys(device: &DeviceId, class: Option<&ClassId>, window: &Window) -> Vec<Key> {
    let key = |subject: Subject, span: Span| Key {
        subject,
        span,
        start_ms: span.start_ms(window.start_ms),
        bundle: window.bundle,
        rung: window.rung.clone(),
    };
    let own = [Span::Hour, Span::Day].map(|span| key(Subject::Device(device.clone()), span));
    let shared = class.map(|class| [Span::Minute, Span::Hour, Span::Day].map(|span| key(Subject::Class(class.clone()), span)));
    own.into_iter().chain(shared.into_iter().flatten()).collect()
}

/// Adds windows up by what they belong to.
pub fn add_up<'a>(windows: impl IntoIterator<Item = (&'a DeviceId, Option<&'a ClassId>, &'a Window)>) -> BTreeMap<Key, Sums> {
    let mut all: BTreeMap<Key, Sums> = BTreeMap::new();
    for (device, class, window) in windows {
        let sums = Sums::of(window);
        for key in keys(device, class, window) {
            all.entry(key).or_default().add(&sums);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(number: u64, start_ms: i64) -> Window {
        let mut latency = LatencyHistogram::new();
        latency.record_us(number * 1_000);
        Window {
            number,
            bundle: Digest::new([1; 32]),
            rung: "full".into(),
            start_ms,
            duration_ms: 1_000,
            requests: number,
            errors: 0,
            latency,
            confusion: None,
            cpu_us: 1,
            memory_bytes: number,
        }
    }

    #[test]
    fn spans_begin_where_the_clock_says_also_before_1970() {
        assert_eq!([59_999, 60_000, -1].map(|at| Span::Minute.start_ms(at)), [0, 60_000, -60_000]);
        assert_eq!(Span::Day.start_ms(86_400_000 * 5 + 7), 86_400_000 * 5);
    }

    #[test]
    fn order_and_grouping_do_not_matter() {
        let (a, b, class) = ("a".parse().unwrap(), "b".parse().unwrap(), "c".parse().unwrap());
        let windows: Vec<_> = (1..=40).map(|n| (if n % 2 == 0 { &a } else { &b }, window(n, n as i64 * 7_000))).collect();
        let rows = || windows.iter().map(|(device, window)| (*device, Some(&class), window));
        let at_once = add_up(rows());
        let mut in_parts = add_up(rows().rev().take(13));
        for (key, sums) in add_up(rows().rev().skip(13)) {
            in_parts.entry(key).or_default().add(&sums);
        }
        assert_eq!(at_once, in_parts);
        let day = at_once.iter().find(|(key, _)| key.span == Span::Day && key.subject == Subject::Class(class.clone())).unwrap().1;
        assert_eq!((day.windows, day.requests, day.max_memory_bytes, day.latency.count()), (40, 820, 40, 40));
    }
}
