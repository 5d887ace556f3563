//! The ledger: what this device has proved, what it is trying, and what it accepted last. It is what a device remembers
//! over a power cut, so it is written as a whole and synced before anything relies on it.

use std::path::{Path, PathBuf};

use pleach_domain::id::ModelName;
use pleach_domain::{ClassId, Digest};
use pleach_trust::Accepted;
use serde::{Deserialize, Serialize};

use crate::error::AgentError;
use crate::files;

const FORMAT: u32 = 1;
const MAX_LEDGER_BYTES: u64 = 1 << 20;
const MAX_MEASURED: usize = 64;

/// A bundle as one verified assignment names it, with the content key wrapped for this device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// SHA-256 of the sealed bundle.
    pub digest: Digest,
    /// Length of the sealed bundle in bytes.
    pub length_bytes: u64,
    /// Root of the hash tree over its chunks.
    pub tree_root: Digest,
    /// Sequence of the assignment.
    pub sequence: u64,
    /// Model inside.
    pub model: ModelName,
    /// Version of the model.
    pub model_version: u64,
    /// Class it was made for.
    pub class: ClassId,
    /// The wrap, 80 bytes, hexadecimal.
    #[serde(with = "hexadecimal")]
    pub wrap: Vec<u8>,
    /// Good inferences that prove it.
    pub probation_inferences: u32,
    /// Longest probation in milliseconds.
    pub probation_ms: u32,
}

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Being downloaded.
    Delivering,
    /// Whole on disk.
    Staged,
    /// Being loaded or serving on probation: a crash now may be the bundle's doing.
    Probation,
}

/// A bundle that is not proven yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What is tried.
    pub assigned: Assigned,
    /// How far it has come.
    pub step: Step,
    /// Starts of the agent that found it on probation.
    pub boots: u32,
}

/// An assignment that ended without proof; it is not tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Sequence of the assignment.
    pub sequence: u64,
    /// The check that failed.
    pub check: String,
}

/// Everything the ledger holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    pub(crate) format: u32,
    /// The bundle that serves.
    pub proven: Option<Assigned>,
    /// The bundle that was proven before that one, kept to go back to.
    pub previous: Option<Assigned>,
    /// The bundle that is being tried.
    pub attempt: Option<Attempt>,
    /// The last assignment that failed.
    pub ended: Option<Ended>,
    /// The assignment that was accepted last; nothing older is.
    pub accepted: Option<Accepted>,
    /// The clock never shows less, milliseconds since 1970 UTC.
    pub time_floor_ms: i64,
    /// Measurement tasks that are done, oldest first.
    pub measured: Vec<String>,
    /// SHA-256 of the hardware profile that was last reported, without its timings.
    pub profile: Option<Digest>,
}

impl Ledger {
    /// Remembers that a measurement task is done.
    pub fn remember_measured(&mut self, task: String) {
        self.measured.push(task);
        let surplus = self.measured.len().saturating_sub(MAX_MEASURED);
        self.measured.drain(..surplus);
    }
}

/// The ledger's file.
#[derive(Clone, Debug)]
pub struct LedgerFile {
    path: PathBuf,
}

impl LedgerFile {
    /// The ledger at a path.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads the ledger. One that cannot be read is put aside as `.bak` and the device begins with an empty one: it loses its
    /// memory, not its service.
    ///
    /// # Errors
    /// [`AgentError::File`] when the disk cannot be read at all.
    pub fn load(&self) -> Result<Ledger, AgentError> {
        let bytes = match files::read_bounded(&self.path, MAX_LEDGER_BYTES) {
            Ok(None) => return Ok(empty()),
            Ok(Some(bytes)) => Ok(bytes),
            Err(AgentError::FileTooLong { most, .. }) => Err(format!("more than {most} bytes")),
            Err(error) => return Err(error),
        };
        match bytes.and_then(|b| parse(&b)) {
            Ok(ledger) => Ok(ledger),
            Err(reason) => {
                let aside = backup(&self.path);
                tracing::warn!(reason, kept = %aside.display(), "the ledger is damaged; beginning with an empty one");
                files::rename(&self.path, &aside)?;
                Ok(empty())
            }
        }
    }

    /// Reads the ledger and changes nothing.
    ///
    /// # Errors
    /// [`AgentError::Damaged`] for one that [`LedgerFile::load`] would put aside, [`AgentError::File`].
    pub fn peek(&self) -> Result<Ledger, AgentError> {
        let bytes = files::read_bounded(&self.path, MAX_LEDGER_BYTES)?;
        bytes.map_or_else(|| Ok(empty()), |b| parse(&b).map_err(|reason| AgentError::Damaged { path: self.path.clone(), reason }))
    }

    /// Writes the ledger; after `Ok` it survives a power cut.
    ///
    /// # Errors
    /// [`AgentError::File`]; the one before is then still there.
    pub fn save(&self, ledger: &Ledger) -> Result<(), AgentError> {
        let json = serde_json::to_vec_pretty(ledger).map_err(|_| AgentError::Crypto("the ledger's JSON"))?;
        files::write_atomic(&self.path, &json)
    }
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

fn empty() -> Ledger {
    Ledger { format: FORMAT, ..Ledger::default() }
}

fn parse(bytes: &[u8]) -> Result<Ledger, String> {
    let ledger: Ledger = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if ledger.format == FORMAT { Ok(ledger) } else { Err(format!("format is {}, expected {FORMAT}", ledger.format)) }
}

fn backup(path: &Path) -> PathBuf {
    path.with_extension("json.bak")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn assigned(sequence: u64) -> Assigned {
        Assigned {
            digest: Digest::new([sequence as u8; 32]),
            length_bytes: 4096,
            tree_root: Digest::new([1; 32]),
            sequence,
            model: "m".parse().unwrap(),
            model_version: 1,
            class: "c".parse().unwrap(),
            wrap: vec![7; 80],
            probation_inferences: 20,
            probation_ms: 60_000,
        }
    }

    fn full() -> Ledger {
        let mut ledger = empty();
        ledger.proven = Some(assigned(3));
        ledger.attempt = Some(Attempt { assigned: assigned(4), step: Step::Probation, boots: 1 });
        ledger.ended = Some(Ended { sequence: 2, check: "known-answer".into() });
        ledger.accepted = Some(Accepted { sequence: 4, bundle: pleach_trust::Sha256Digest::of(b"b") });
        ledger.time_floor_ms = 5;
        ledger.remember_measured("t".into());
        ledger.profile = Some(Digest::new([9; 32]));
        ledger
    }

    #[test]
    fn comes_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = LedgerFile::new(dir.path().join("ledger.json"));
        assert_eq!(file.load().unwrap(), empty());
        file.save(&full()).unwrap();
        assert_eq!(file.load().unwrap(), full());
    }

    #[test]
    fn every_torn_write_is_put_aside_and_begins_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.json");
        let whole = serde_json::to_vec_pretty(&full()).unwrap();
        let file = LedgerFile::new(path.clone());
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(file.load().unwrap(), empty(), "{length} bytes");
            assert_eq!(std::fs::read(backup(&path)).unwrap(), &whole[..length]);
            assert!(!path.exists());
        }
    }

    #[test]
    fn another_format_or_a_huge_file_does_not_brick() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.json");
        let file = LedgerFile::new(path.clone());
        std::fs::write(&path, serde_json::to_vec(&Ledger { format: 9, ..full() }).unwrap()).unwrap();
        assert_eq!(file.load().unwrap(), empty());
        std::fs::write(&path, vec![b' '; MAX_LEDGER_BYTES as usize + 1]).unwrap();
        assert_eq!(file.load().unwrap(), empty());
    }

    #[test]
    fn remembers_a_bounded_number_of_measurements() {
        let mut ledger = empty();
        (0..200).for_each(|n| ledger.remember_measured(n.to_string()));
        assert_eq!((ledger.measured.len(), ledger.measured.last().unwrap().as_str()), (MAX_MEASURED, "199"));
    }
}
