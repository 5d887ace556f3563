//! A bundle that is partly here: `<digest>.part` with whole verified chunks from the first on, `<digest>.leaves` beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pleach_artifact::ChunkVerifier;
use pleach_domain::Digest;

use super::storage;
use crate::control::failure::Failure;
use crate::files;
use crate::ledger::Assigned;

/// 32 bytes for each chunk of the largest bundle.
const MAX_LEAVES_BYTES: u64 = 4 << 20;

/// The file and what its chunks must be.
#[derive(Debug)]
pub(super) struct PartFile {
    folder: PathBuf,
    digest: Digest,
    file: File,
    verifier: ChunkVerifier,
    next: u32,
    /// Bytes of chunk `next` so far.
    partial: Vec<u8>,
}

impl PartFile {
    /// Goes on with a download of an earlier time: chunks that are here and verify are kept, everything behind the first that
    /// does not is cut off. `None` when nothing usable is here.
    ///
    /// # Errors
    /// The checks `storage` and `disk-full`.
    pub(super) fn resume(folder: &Path, assigned: &Assigned) -> Result<Option<Self>, Failure> {
        let leaves = match files::read_bounded(&leaves_path(folder, &assigned.digest), MAX_LEAVES_BYTES) {
            Ok(Some(leaves)) => leaves,
            Ok(None) | Err(_) => return discard(folder, &assigned.digest).map(|()| None),
        };
        match ChunkVerifier::new(assigned.length_bytes, &assigned.tree_root, &leaves) {
            Ok(verifier) => Self::open(folder, assigned.digest, verifier).map(Some),
            Err(_) => discard(folder, &assigned.digest).map(|()| None),
        }
    }

    /// Begins with a leaf list as it came.
    ///
    /// # Errors
    /// The check `hash-tree` when the leaves do not hash to the signed root; `storage` and `disk-full`.
    pub(super) fn begin(folder: &Path, assigned: &Assigned, leaves: &[u8]) -> Result<Self, Failure> {
        let verifier = ChunkVerifier::new(assigned.length_bytes, &assigned.tree_root, leaves).map_err(|e| Failure::of_artifact(&e))?;
        files::write_atomic(&leaves_path(folder, &assigned.digest), leaves).map_err(|e| Failure::of_agent(&e))?;
        Self::open(folder, assigned.digest, verifier)
    }

    /// Bytes that are here and verified: where the download goes on.
    pub(super) fn offset(&self) -> u64 {
        let layout = self.verifier.layout();
        layout.chunk_range(self.next).map_or(layout.sealed_bytes(), |range| range.start)
    }

    /// Whether every chunk is here.
    pub(super) fn is_whole(&self) -> bool {
        self.next >= self.verifier.layout().chunk_count()
    }

    /// Drops the bytes of a chunk that never became whole.
    pub(super) fn forget_partial(&mut self) {
        self.partial.clear();
    }

    /// Takes bytes as they come; each chunk that becomes whole is verified and then written. Bytes behind the end are ignored.
    ///
    /// # Errors
    /// The check `chunk-hash`; nothing of that chunk is written.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !self.is_whole() && !bytes.is_empty() {
            let whole = self.verifier.layout().chunk_len(self.next).map_err(|e| Failure::of_artifact(&e))?;
            let (now, later) = bytes.split_at(bytes.len().min(whole.saturating_sub(self.partial.len())));
            self.partial.extend_from_slice(now);
            bytes = later;
            if self.partial.len() == whole {
                self.write()?;
            }
        }
        Ok(())
    }

    /// Syncs the whole bundle and gives it its final name.
    ///
    /// # Errors
    /// The checks `storage` and `disk-full`.
    pub(super) fn finish(self) -> Result<(), Failure> {
        self.file.sync_all().map_err(|e| storage("syncing the bundle", &e))?;
        let whole = self.folder.join(format!("{}.bundle", self.digest));
        files::rename(&part_path(&self.folder, &self.digest), &whole).map_err(|e| Failure::of_agent(&e))?;
        files::remove(&leaves_path(&self.folder, &self.digest)).map_err(|e| Failure::of_agent(&e))
    }

    fn write(&mut self) -> Result<(), Failure> {
        let verified = self.verifier.verify(self.next, &self.partial).map_err(|e| Failure::of_artifact(&e));
        let written = verified.and_then(|()| self.file.write_all(&self.partial).map_err(|e| storage("writing the bundle", &e)));
        self.partial.clear();
        written?;
        self.next += 1;
        Ok(())
    }

    fn open(folder: &Path, digest: Digest, verifier: ChunkVerifier) -> Result<Self, Failure> {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(part_path(folder, &digest));
        let file = opened.map_err(|e| storage("opening the part file", &e))?;
        let mut part = Self { folder: folder.to_owned(), digest, file, verifier, next: 0, partial: Vec::new() };
        part.check_what_is_here().map_err(|e| storage("reading the part file", &e))?;
        Ok(part)
    }

    fn check_what_is_here(&mut self) -> std::io::Result<()> {
        let mut chunk = Vec::new();
        while let Ok(length) = self.verifier.layout().chunk_len(self.next) {
            chunk.clear();
            (&mut self.file).take(length as u64).read_to_end(&mut chunk)?;
            if self.verifier.verify(self.next, &chunk).is_err() {
                break;
            }
            self.next += 1;
        }
        let end = self.offset();
        self.file.set_len(end)?;
        self.file.seek(SeekFrom::Start(end)).map(drop)
    }
}

/// Removes what is here of a bundle, whole or in part.
///
/// # Errors
/// The check `storage`.
pub(super) fn discard(folder: &Path, digest: &Digest) -> Result<(), Failure> {
    let paths = [part_path(folder, digest), leaves_path(folder, digest)];
    paths.iter().try_for_each(|path| match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(storage("removing a part file", &e)),
        Ok(()) | Err(_) => Ok(()),
    })
}

fn part_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join(format!("{digest}.part"))
}

fn leaves_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join(format!("{digest}.leaves"))
}

#[cfg(test)]
mod tests {
    use pleach_artifact::{CHUNK_BYTES, Layout, Suite, seal};

    use super::*;

    struct Bundle {
        dir: tempfile::TempDir,
        assigned: Assigned,
        leaves: Vec<u8>,
        bytes: Vec<u8>,
        layout: Layout,
    }

    fn bundle() -> Bundle {
        let payload = vec![5; CHUNK_BYTES * 3 + 100];
        let mut bytes = Vec::new();
        let sealed = seal(&mut payload.as_slice(), payload.len() as u64, Suite::Aes256Gcm, &mut bytes).unwrap();
        let assigned = Assigned {
            digest: sealed.digest,
            length_bytes: sealed.length,
            tree_root: sealed.tree_root,
            ..crate::ledger::tests::assigned(1)
        };
        let layout = Layout::of_sealed(sealed.length).unwrap();
        Bundle { dir: tempfile::tempdir().unwrap(), assigned, leaves: sealed.leaves.encode(), bytes, layout }
    }

    impl Bundle {
        fn begin(&self) -> PartFile {
            PartFile::begin(self.dir.path(), &self.assigned, &self.leaves).unwrap()
        }

        fn resume(&self) -> Option<PartFile> {
            PartFile::resume(self.dir.path(), &self.assigned).unwrap()
        }

        fn part(&self) -> PathBuf {
            part_path(self.dir.path(), &self.assigned.digest)
        }

        fn complete(&self, mut part: PartFile) {
            let offset = part.offset() as usize;
            part.append(&self.bytes[offset..]).unwrap();
            assert!(part.is_whole());
            part.finish().unwrap();
            let path = self.dir.path().join(format!("{}.bundle", self.assigned.digest));
            assert_eq!(fs::read(&path).unwrap(), self.bytes);
            assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 1);
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn resumes_at_every_chunk_boundary_and_beside_it() {
        let bundle = bundle();
        for index in 0..bundle.layout.chunk_count() {
            let start = bundle.layout.chunk_range(index).unwrap().start as usize;
            for end in [start.saturating_sub(1), start, start + 1] {
                let mut part = bundle.begin();
                part.append(&bundle.bytes[..end]).unwrap();
                drop(part);
                let part = bundle.resume().unwrap();
                assert_eq!(part.offset(), bundle.layout.chunk_range(bundle.layout.resume_at(end as u64)).unwrap().start);
                bundle.complete(part);
            }
        }
    }

    #[test]
    fn bytes_may_come_in_any_pieces() {
        let bundle = bundle();
        for piece in [1000, 65_536, 131_072, usize::MAX] {
            let mut part = bundle.begin();
            bundle.bytes.chunks(piece.min(bundle.bytes.len())).for_each(|bytes| part.append(bytes).unwrap());
            bundle.complete(part);
        }
    }

    #[test]
    fn a_damaged_chunk_is_never_written() {
        let bundle = bundle();
        let mut damaged = bundle.bytes.clone();
        let second = bundle.layout.chunk_range(1).unwrap().start as usize;
        damaged[second + 7] ^= 1;
        let mut part = bundle.begin();
        assert_eq!(part.append(&damaged).unwrap_err().check, "chunk-hash");
        assert_eq!(fs::metadata(bundle.part()).unwrap().len(), second as u64);
        bundle.complete(part);
    }

    #[test]
    fn a_chunk_that_rotted_on_disk_is_fetched_again_with_all_behind_it() {
        let bundle = bundle();
        for index in 0..bundle.layout.chunk_count() {
            let start = bundle.layout.chunk_range(index).unwrap().start;
            drop(bundle.begin());
            let mut rotten = bundle.bytes.clone();
            rotten[start as usize] ^= 0x80;
            fs::write(bundle.part(), &rotten).unwrap();
            let part = bundle.resume().unwrap();
            assert_eq!(part.offset(), start);
            bundle.complete(part);
        }
    }

    #[test]
    fn trailing_bytes_are_cut_off() {
        let bundle = bundle();
        drop(bundle.begin());
        fs::write(bundle.part(), [bundle.bytes.as_slice(), b"more"].concat()).unwrap();
        bundle.complete(bundle.resume().unwrap());
    }

    #[test]
    fn leaves_of_another_tree_are_refused_and_damaged_ones_begin_anew() {
        let bundle = bundle();
        let mut leaves = bundle.leaves.clone();
        leaves[0] ^= 1;
        assert_eq!(PartFile::begin(bundle.dir.path(), &bundle.assigned, &leaves).unwrap_err().check, "hash-tree");
        bundle.begin().append(&bundle.bytes[..70_000]).unwrap();
        fs::write(leaves_path(bundle.dir.path(), &bundle.assigned.digest), &leaves).unwrap();
        assert!(bundle.resume().is_none());
        assert_eq!(fs::read_dir(bundle.dir.path()).unwrap().count(), 0);
    }
}
