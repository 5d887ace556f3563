//! Reports that wait for the controller: one file each, bounded in bytes and number, kept over restarts, deleted when
//! acknowledged.
//!
//! A report keeps its sequence and its windows keep their numbers from the moment it is spooled, so sending it twice changes
//! nothing. When the spool is full the oldest reports without events go first: a lost window is a gap, a lost event is a lie.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use pleach_proto::fleet::{Event, HardwareProfile, Measurement, Report, Window};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::error::AgentError;
use crate::files;

const MAX_REPORT_BYTES: u64 = pleach_proto::MAX_MESSAGE_BYTES as u64;
const MAX_COUNTERS_BYTES: u64 = 4096;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct SpoolLimits {
    /// Bytes of all reports together.
    pub bytes: u64,
    /// Number of reports.
    pub reports: usize,
    /// Milliseconds that windows wait; events, measurements and profiles wait as long as there is room.
    pub age_ms: i64,
}

/// What a report is to say. Windows get their numbers from the spool.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Windows.
    pub windows: Vec<Window>,
    /// Events.
    pub events: Vec<Event>,
    /// Measurements.
    pub measurements: Vec<Measurement>,
    /// Profile, when it changed.
    pub profile: Option<HardwareProfile>,
}

/// The waiting reports of one device.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    device: String,
    boot: String,
    limits: SpoolLimits,
    waiting: BTreeMap<u64, Entry>,
    bytes: u64,
    /// Of the newest report and window ever spooled.
    last: Counters,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: u64,
    expendable: bool,
    at_ms: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counters {
    sequence: u64,
    window: u64,
}

impl Spool {
    /// Opens the spool in a folder that exists, and drops what cannot be read.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn open(dir: PathBuf, device: &str, boot: &str, limits: SpoolLimits) -> Result<Self, AgentError> {
        let mut spool = Self {
            last: Counters::default(),
            device: device.to_owned(),
            boot: boot.to_owned(),
            waiting: BTreeMap::new(),
            bytes: 0,
            limits,
            dir,
        };
        let counters = files::read_bounded(&spool.counters(), MAX_COUNTERS_BYTES)?.unwrap_or_default();
        spool.last = serde_json::from_slice(&counters).unwrap_or_default();
        for entry in fs::read_dir(&spool.dir).map_err(AgentError::file("reading folder", &spool.dir))? {
            let entry = entry.map_err(AgentError::file("reading folder", &spool.dir))?;
            let name = entry.file_name();
            if let Some(sequence) = name.to_str().and_then(|n| n.strip_suffix(".report")).and_then(|n| n.parse().ok()) {
                spool.take_in(sequence)?;
            }
        }
        Ok(spool)
    }

    /// Highest sequence used.
    pub fn last_sequence(&self) -> u64 {
        self.last.sequence
    }

    /// Number of waiting reports.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Spools a report under the next sequence; after `Ok` it survives a power cut.
    ///
    /// # Errors
    /// [`AgentError::File`]; nothing is spooled then, and the sequence is not used up.
    pub fn push(&mut self, draft: Draft, now_ms: i64) -> Result<u64, AgentError> {
        let mut next = self.last;
        next.sequence += 1;
        let mut report = Report {
            device_id: self.device.clone(),
            boot_id: self.boot.clone(),
            sequence: next.sequence,
            sent_at_ms: now_ms,
            windows: draft.windows,
            events: draft.events,
            measurements: draft.measurements,
            profile: draft.profile,
        };
        for window in &mut report.windows {
            next.window += 1;
            window.number = next.window;
        }
        self.write(&report)?;
        self.last = next;
        self.make_room(now_ms)?;
        Ok(next.sequence)
    }

    /// The oldest waiting report. One that cannot be read any more is dropped.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn oldest(&mut self) -> Result<Option<Report>, AgentError> {
        while let Some(&sequence) = self.waiting.keys().next() {
            if let Some(report) = self.read(sequence)? {
                return Ok(Some(report));
            }
            self.drop_report(sequence)?;
        }
        Ok(None)
    }

    /// Deletes every report up to an acknowledged sequence. When the controller has seen more than this device remembers (its
    /// state came back from a backup), what waits is numbered anew above that.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn acknowledge(&mut self, sequence: u64) -> Result<(), AgentError> {
        if sequence > self.last.sequence {
            return self.renumber(sequence);
        }
        // First remember, then forget: the counters must never fall behind the files.
        self.save_counters()?;
        let done: Vec<u64> = self.waiting.range(..=sequence).map(|(s, _)| *s).collect();
        done.into_iter().try_for_each(|s| self.drop_report(s))
    }

    fn renumber(&mut self, above: u64) -> Result<(), AgentError> {
        tracing::warn!(controller = above, device = self.last.sequence, "the controller has newer reports of this device; numbering anew");
        let waiting: Vec<u64> = self.waiting.keys().copied().collect();
        self.last = Counters { sequence: above, window: self.last.window.max(above.saturating_mul(4)) };
        self.save_counters()?;
        for old in waiting {
            if let Some(report) = self.read(old)? {
                let Report { windows, events, measurements, profile, sent_at_ms, .. } = report;
                self.push(Draft { windows, events, measurements, profile }, sent_at_ms)?;
            }
            self.drop_report(old)?;
        }
        Ok(())
    }

    fn make_room(&mut self, now_ms: i64) -> Result<(), AgentError> {
        let oldest_ms = now_ms.saturating_sub(self.limits.age_ms);
        let stale: Vec<u64> = self.waiting.iter().filter(|(_, e)| e.expendable && e.at_ms < oldest_ms).map(|(s, _)| *s).collect();
        if !stale.is_empty() {
            tracing::warn!(reports = stale.len(), "dropping windows that have waited too long");
            self.save_counters()?;
            stale.into_iter().try_for_each(|s| self.drop_report(s))?;
        }
        while self.waiting.len() > 1 && (self.bytes > self.limits.bytes || self.waiting.len() > self.limits.reports) {
            let expendable = self.waiting.iter().find(|(_, e)| e.expendable).map(|(s, _)| *s);
            let Some(victim) = expendable.or_else(|| self.waiting.keys().next().copied()) else { return Ok(()) };
            tracing::warn!(report.sequence = victim, waiting = self.waiting.len(), "the spool is full; dropping a report");
            self.save_counters()?;
            self.drop_report(victim)?;
        }
        Ok(())
    }

    fn take_in(&mut self, sequence: u64) -> Result<(), AgentError> {
        let Some(report) = self.read(sequence)? else {
            tracing::warn!(report.sequence = sequence, "dropping a spooled report that cannot be read");
            return files::remove(&self.path(sequence));
        };
        self.note(&report);
        self.last.sequence = self.last.sequence.max(sequence);
        self.last.window = report.windows.iter().map(|w| w.number).fold(self.last.window, u64::max);
        Ok(())
    }

    fn note(&mut self, report: &Report) {
        let bytes = report.encoded_len() as u64;
        let expendable = report.events.is_empty() && report.measurements.is_empty() && report.profile.is_none();
        self.bytes += bytes;
        self.waiting.insert(report.sequence, Entry { bytes, expendable, at_ms: report.sent_at_ms });
    }

    fn write(&mut self, report: &Report) -> Result<(), AgentError> {
        files::write_atomic(&self.path(report.sequence), &report.encode_to_vec())?;
        self.note(report);
        Ok(())
    }

    fn read(&self, sequence: u64) -> Result<Option<Report>, AgentError> {
        let bytes = match files::read_bounded(&self.path(sequence), MAX_REPORT_BYTES) {
            Ok(bytes) => bytes,
            Err(AgentError::FileTooLong { .. }) => None,
            Err(error) => return Err(error),
        };
        let report = bytes.and_then(|b| Report::decode(b.as_slice()).ok());
        Ok(report.filter(|r| r.sequence == sequence && r.device_id == self.device))
    }

    fn drop_report(&mut self, sequence: u64) -> Result<(), AgentError> {
        files::remove(&self.path(sequence))?;
        if let Some(entry) = self.waiting.remove(&sequence) {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
        Ok(())
    }

    fn save_counters(&self) -> Result<(), AgentError> {
        let json = serde_json::to_vec(&self.last).map_err(|_| AgentError::Crypto("the spool's counters"))?;
        files::write_atomic(&self.counters(), &json)
    }

    fn counters(&self) -> PathBuf {
        self.dir.join("counters.json")
    }

    fn path(&self, sequence: u64) -> PathBuf {
        self.dir.join(format!("{sequence:020}.report"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: SpoolLimits = SpoolLimits { bytes: 1 << 20, reports: 1000, age_ms: i64::MAX };

    fn open(dir: &tempfile::TempDir, limits: SpoolLimits) -> Spool {
        Spool::open(dir.path().to_owned(), "d-1", "b", limits).unwrap()
    }

    fn window() -> Draft {
        Draft { windows: vec![Window { rung: "full".into(), ..Window::default() }], ..Draft::default() }
    }

    fn event() -> Draft {
        Draft { events: vec![Event { check: "load".into(), ..Event::default() }], ..Draft::default() }
    }

    fn numbers(report: &Report) -> (u64, Vec<u64>) {
        (report.sequence, report.windows.iter().map(|w| w.number).collect())
    }

    #[test]
    fn reports_and_numbers_survive_restarts_without_gap_or_repeat() {
        let dir = tempfile::tempdir().unwrap();
        for round in 1..=5 {
            let mut spool = open(&dir, WIDE);
            assert_eq!(spool.push(window(), 0).unwrap(), round);
            assert_eq!(spool.len() as u64, if round > 3 { round - 3 } else { round });
            if round == 3 {
                spool.acknowledge(3).unwrap();
                assert!(spool.is_empty());
            }
        }
        let oldest = open(&dir, WIDE).oldest().unwrap().unwrap();
        assert_eq!(numbers(&oldest), (4, vec![4]));
        assert_eq!((oldest.device_id.as_str(), oldest.boot_id.as_str()), ("d-1", "b"));
    }

    #[test]
    fn windows_go_when_they_are_old_and_events_wait() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(&dir, SpoolLimits { age_ms: 1000, ..WIDE });
        spool.push(window(), 0).unwrap();
        spool.push(event(), 0).unwrap();
        spool.push(window(), 900).unwrap();
        assert_eq!(spool.len(), 3);
        spool.push(window(), 1001).unwrap();
        let sequences: Vec<_> = spool.waiting.keys().copied().collect();
        assert_eq!(sequences, [2, 3, 4]);
    }

    #[test]
    fn an_acknowledgement_deletes_only_what_it_covers() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(&dir, WIDE);
        (0..4).for_each(|_| _ = spool.push(window(), 0).unwrap());
        spool.acknowledge(2).unwrap();
        spool.acknowledge(2).unwrap();
        assert_eq!((spool.len(), spool.oldest().unwrap().unwrap().sequence), (2, 3));
    }

    #[test]
    fn is_bounded_in_number_and_keeps_events_longest() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(&dir, SpoolLimits { reports: 16, ..WIDE });
        spool.push(event(), 0).unwrap();
        (0..100).for_each(|_| _ = spool.push(window(), 0).unwrap());
        assert_eq!((spool.len(), fs::read_dir(dir.path()).unwrap().count()), (16, 17));
        assert_eq!(spool.oldest().unwrap().unwrap().events.len(), 1);
        (0..100).for_each(|_| _ = spool.push(event(), 0).unwrap());
        assert_eq!((spool.len(), spool.oldest().unwrap().unwrap().sequence), (16, 186));
    }

    #[test]
    fn is_bounded_in_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(&dir, SpoolLimits { bytes: 10_000, ..WIDE });
        let draft = || Draft { windows: vec![Window { latency_histogram: vec![7; 3000], ..Window::default() }], ..Draft::default() };
        (0..20).for_each(|_| _ = spool.push(draft(), 0).unwrap());
        let on_disk: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(spool.len() == 3 && on_disk <= 10_100, "{} reports, {on_disk} bytes", spool.len());
    }

    #[test]
    fn numbers_never_repeat_after_everything_was_dropped_or_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(&dir, WIDE);
        (0..3).for_each(|_| _ = spool.push(window(), 0).unwrap());
        spool.acknowledge(3).unwrap();
        drop(spool);
        let mut spool = open(&dir, WIDE);
        assert_eq!(spool.last_sequence(), 3);
        spool.push(window(), 0).unwrap();
        assert_eq!(numbers(&spool.oldest().unwrap().unwrap()), (4, vec![4]));
    }

    #[test]
    fn every_torn_report_is_dropped_and_the_rest_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(&dir, WIDE);
        spool.push(window(), 0).unwrap();
        let path = spool.path(1);
        spool.push(event(), 0).unwrap();
        drop(spool);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            // A prefix may be a valid message; it is then sent short of its tail or dropped, but never blocks what follows.
            let mut spool = open(&dir, WIDE);
            while let Some(report) = spool.oldest().unwrap() {
                if report.sequence == 2 {
                    break;
                }
                spool.drop_report(report.sequence).unwrap();
            }
            assert_eq!(spool.oldest().unwrap().unwrap().events.len(), 1);
        }
    }

    #[test]
    fn a_device_restored_from_a_backup_numbers_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(&dir, WIDE);
        spool.push(window(), 0).unwrap();
        spool.push(event(), 0).unwrap();
        spool.acknowledge(40).unwrap();
        assert_eq!(spool.len(), 2);
        let (sequence, windows) = numbers(&spool.oldest().unwrap().unwrap());
        assert!(sequence == 41 && windows[0] > 40, "{sequence} {windows:?}");
        spool.acknowledge(42).unwrap();
        assert!(spool.is_empty());
    }
}
