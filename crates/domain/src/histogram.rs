//! Mergeable latency histograms.

use std::fmt;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};

use crate::error::DomainError;

const LOWEST_US: u64 = 1;
const HIGHEST_US: u64 = 60_000_000;
/// Two significant digits: any quantile is within 1 % of the truth.
const DIGITS: u8 = 2;
/// Largest encoded histogram that is accepted.
pub const MAX_ENCODED_BYTES: usize = 16 * 1024;

/// Latencies in microseconds, 1 µs to 60 s, within 1 %; merging two is exact.
///
/// Source: HdrHistogram, encoded in its V2 format.
#[derive(Clone, PartialEq)]
pub struct LatencyHistogram(Histogram<u64>);

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl LatencyHistogram {
    /// An empty histogram.
    pub fn new() -> Self {
        // The bounds are constants that the library accepts, so the fallback is never taken.
        let histogram = Histogram::new_with_bounds(LOWEST_US, HIGHEST_US, DIGITS);
        Self(histogram.unwrap_or_else(|_| Histogram::new_from(&Histogram::<u64>::new(DIGITS).unwrap_or_else(|_| unreachable!()))))
    }

    /// Counts one call; out-of-range values are clamped.
    pub fn record_us(&mut self, latency_us: u64) {
        self.0.saturating_record(latency_us.clamp(LOWEST_US, HIGHEST_US));
    }

    /// Adds another histogram to this one.
    pub fn merge(&mut self, other: &Self) {
        // Both share the same bounds, so adding cannot fail.
        let _ = self.0.add(&other.0);
    }

    /// Calls counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The quantile `q` in 0..=1, in microseconds; 0 when empty.
    pub fn quantile_us(&self, q: f64) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(q) }
    }

    /// Calls that took longer than `us` microseconds, within the histogram's 1 %.
    pub fn count_above(&self, us: u64) -> u64 {
        let within = self.0.count_between(0, us.min(HIGHEST_US));
        self.0.len().saturating_sub(within)
    }

    /// Mean in microseconds; 0 when empty.
    pub fn mean_us(&self) -> f64 {
        self.0.mean()
    }

    /// The HdrHistogram V2 encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // Writing to a Vec cannot fail and the counts fit the format.
        let _ = V2Serializer::new().serialize(&self.0, &mut out);
        out
    }

    /// Parses the HdrHistogram V2 encoding.
    ///
    /// # Errors
    /// [`DomainError::Histogram`] when it is too long, malformed, or has other bounds than ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, DomainError> {
        if bytes.len() > MAX_ENCODED_BYTES {
            return Err(DomainError::Histogram(format!("{} bytes: expected at most {MAX_ENCODED_BYTES}", bytes.len())));
        }
        // The bounds stand in the header (bytes 12..16 digits, 16..24 low, 24..32 high, big endian), and the decoder allocates by them.
        let field = |range: std::ops::Range<usize>| bytes.get(range).map(|b| b.iter().fold(0u64, |a, &x| a << 8 | u64::from(x)));
        let header = (field(12..16), field(16..24), field(24..32));
        if header != (Some(u64::from(DIGITS)), Some(LOWEST_US), Some(HIGHEST_US)) {
            return Err(DomainError::Histogram(format!("digits, low, high are {header:?}: expected {DIGITS}, {LOWEST_US}, {HIGHEST_US}")));
        }
        let histogram = Deserializer::new().deserialize(&mut &bytes[..]).map_err(|e| DomainError::Histogram(e.to_string()))?;
        Ok(Self(histogram))
    }
}

impl fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LatencyHistogram(n={}, p50={}us, p95={}us)", self.count(), self.quantile_us(0.5), self.quantile_us(0.95))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_equals_recording_everything_in_one() {
        let (mut a, mut b, mut all) = (LatencyHistogram::new(), LatencyHistogram::new(), LatencyHistogram::new());
        for i in 1..2_000u64 {
            if i % 3 == 0 {
                a.record_us(i * 7)
            } else {
                b.record_us(i * 7)
            }
            all.record_us(i * 7);
        }
        a.merge(&b);
        assert_eq!(a, all);
        let p95 = a.quantile_us(0.95) as f64;
        assert!((p95 / (1_900.0 * 7.0) - 1.0).abs() < 0.01, "{p95}");
    }

    #[test]
    fn calls_above_a_time_are_counted() {
        let mut a = LatencyHistogram::new();
        (1..=100).for_each(|i| a.record_us(i * 1_000));
        assert_eq!([a.count_above(0), a.count_above(95_500), a.count_above(u64::MAX)], [100, 5, 0]);
    }

    #[test]
    fn decodes_what_it_encodes() {
        let mut a = LatencyHistogram::new();
        (0..100).for_each(|i| a.record_us(i * i * 31));
        assert_eq!(LatencyHistogram::decode(&a.encode()).unwrap(), a);
    }

    #[test]
    fn refuses_foreign_bounds_truncation_and_length() {
        let bytes = LatencyHistogram::new().encode();
        let mut wide = bytes.clone();
        wide[24] = 0x7f;
        assert!(LatencyHistogram::decode(&wide).is_err());
        assert!(LatencyHistogram::decode(&bytes[..20]).is_err());
        assert!(LatencyHistogram::decode(&vec![0; MAX_ENCODED_BYTES + 1]).is_err());
    }
}
