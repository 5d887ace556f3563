//! The payload: what is inside a sealed bundle.
//!
//! ```text
//! 0..4    length M of the manifest in bytes (u32, big endian)
//! 4..4+M  manifest, JSON
//! then    the rungs' ONNX files, one after the other, as the manifest says
//! ```

use std::io::{self, Read};

use crate::error::ArtifactError;
use crate::manifest::{BundleManifest, MAX_MANIFEST_BYTES, Rung};
use crate::tree::sha256;

const LENGTH_BYTES: usize = 4;

/// One rung's ONNX file, on its way into a payload.
#[derive(Clone, Copy, Debug)]
pub struct RungSource<'a> {
    /// The encoded model.
    pub onnx: &'a [u8],
}

/// Reads a payload for [`crate::seal()`] out of a manifest and the files of its rungs, without a copy of the files.
#[derive(Debug)]
pub struct PayloadReader<'a> {
    head: Vec<u8>,
    files: Vec<&'a [u8]>,
    length: u64,
    part: usize,
    at: usize,
}

impl<'a> PayloadReader<'a> {
    /// Checks the files against the manifest's lengths and digests and lines them up.
    ///
    /// # Errors
    /// [`ArtifactError::Manifest`] or [`ArtifactError::RungDigest`] when manifest and files disagree.
    pub fn new(manifest: &BundleManifest, files: &[RungSource<'a>]) -> Result<Self, ArtifactError> {
        if files.len() != manifest.rungs.len() {
            return Err(ArtifactError::Manifest {
                field: "rungs".into(),
                got: format!("{} entries", manifest.rungs.len()),
                expected: format!("one for each of {} files", files.len()),
            });
        }
        manifest.rungs.iter().zip(files).try_for_each(|(rung, file)| check_rung(rung, file.onnx))?;
        let json = manifest.encode()?;
        let mut head = (json.len() as u32).to_be_bytes().to_vec();
        head.extend_from_slice(&json);
        let length = head.len() as u64 + manifest.rungs_bytes();
        Ok(Self { head, files: files.iter().map(|f| f.onnx).collect(), length, part: 0, at: 0 })
    }

    /// Bytes of the whole payload: the `plaintext_bytes` of [`crate::seal()`].
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Read for PayloadReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let part = if self.part == 0 { Some(self.head.as_slice()) } else { self.files.get(self.part - 1).copied() };
            let Some(mut rest) = part.map(|p| p.get(self.at..).unwrap_or_default()) else { return Ok(0) };
            let count = rest.read(out)?;
            if count > 0 || out.is_empty() {
                self.at += count;
                return Ok(count);
            }
            (self.part, self.at) = (self.part + 1, 0);
        }
    }
}

/// A parsed payload over the bytes of an opened bundle.
#[derive(Debug)]
pub struct Payload<'a> {
    manifest: BundleManifest,
    files: &'a [u8],
}

impl<'a> Payload<'a> {
    /// Parses an opened payload and checks every rung's place, length and digest.
    ///
    /// # Errors
    /// [`ArtifactError::Manifest`], [`ArtifactError::ManifestSyntax`] or [`ArtifactError::RungDigest`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ArtifactError> {
        let short = |expected: usize| ArtifactError::Manifest {
            field: "payload".into(),
            got: format!("{} bytes", bytes.len()),
            expected: format!("at least {expected} bytes"),
        };
        let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| short(LENGTH_BYTES))?;
        let length = u32::from_be_bytes(*length) as usize;
        let expected = LENGTH_BYTES + length.min(MAX_MANIFEST_BYTES + 1);
        let (json, files) = rest.split_at_checked(length).ok_or_else(|| short(expected))?;
        let manifest = BundleManifest::decode(json)?;
        if files.len() as u64 != manifest.rungs_bytes() {
            return Err(ArtifactError::Manifest {
                field: "payload".into(),
                got: format!("{} bytes of rungs", files.len()),
                expected: format!("{} bytes", manifest.rungs_bytes()),
            });
        }
        let payload = Self { manifest, files };
        payload.manifest.rungs.iter().try_for_each(|rung| check_rung(rung, payload.rung(rung)))?;
        Ok(payload)
    }

    /// The manifest.
    pub fn manifest(&self) -> &BundleManifest {
        &self.manifest
    }

    /// The ONNX file of one of this payload's rungs.
    pub fn rung(&self, rung: &Rung) -> &'a [u8] {
        let end = rung.offset_bytes.saturating_add(rung.length_bytes);
        self.files.get(rung.offset_bytes as usize..end as usize).unwrap_or_default()
    }
}

fn check_rung(rung: &Rung, onnx: &[u8]) -> Result<(), ArtifactError> {
    if onnx.len() as u64 != rung.length_bytes {
        return Err(ArtifactError::Manifest {
            field: format!("rungs[{:?}].length_bytes", rung.name),
            got: rung.length_bytes.to_string(),
            expected: onnx.len().to_string(),
        });
    }
    let got = sha256(onnx);
    if got == rung.sha256 { Ok(()) } else { Err(ArtifactError::RungDigest { rung: rung.name.clone(), got, expected: rung.sha256 }) }
}
