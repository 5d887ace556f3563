//! The ONNX Runtime library: found, checked and loaded once a process, telemetry off.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use pleach_domain::runtime::{LoadedModel, Optimization, Runtime, RuntimeError, TimedModel, Timing};

use crate::error::InferenceError;
use crate::model::OrtModel;
use crate::timing;

/// Environment variable that names the library where no option does.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";
/// Environment variable that keeps telemetry from starting in builds that contain it (official ones from 1.29); set to `1`.
pub const TELEMETRY_VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// The one library and environment of this process. Never dropped: ONNX Runtime allows one environment a process, ever.
static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

struct Loaded {
    path: PathBuf,
    environment: Environment,
}

/// How to open ONNX Runtime.
#[derive(Clone, Debug)]
pub struct OrtOptions {
    /// The library file; else [`LIBRARY_VARIABLE`] names it.
    pub library: Option<PathBuf>,
    /// Threads one model call uses.
    pub threads: NonZeroUsize,
}

/// ONNX Runtime on this machine. Cheap to clone; several with different thread counts may live in one process.
#[derive(Clone, Debug)]
pub struct OrtRuntime {
    environment: Environment,
    library: PathBuf,
    threads: usize,
}

impl OrtRuntime {
    /// Loads the library, or joins the one that is loaded already.
    ///
    /// # Errors
    /// [`InferenceError`] when no library is configured, when it cannot be read or is too old, when another one is loaded, or
    /// when it contains telemetry that the environment does not switch off.
    pub fn new(options: OrtOptions) -> Result<Self, InferenceError> {
        let path = options
            .library
            .or_else(|| std::env::var_os(LIBRARY_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from))
            .ok_or(InferenceError::LibraryNotConfigured)?;
        let path = path.canonicalize().map_err(|source| InferenceError::LibraryUnreadable { path, source })?;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let environment = match loaded.as_ref() {
            Some(known) if known.path == path => known.environment.clone(),
            Some(known) => return Err(InferenceError::LibraryConflict { loaded: known.path.clone(), wanted: path }),
            None => {
                let environment = open(&path)?;
                loaded.insert(Loaded { path: path.clone(), environment }).environment.clone()
            }
        };
        Ok(Self { environment, library: path, threads: options.threads.get() })
    }

    /// Version of the library, e.g. `1.28.0`; `unknown` for builds that do not tell.
    pub fn version(&self) -> String {
        version_of(ort::info(), &self.library).unwrap_or_else(|| "unknown".to_owned())
    }

    /// File the library was loaded from.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Threads one model call uses.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Execution providers that sessions use.
    pub fn execution_providers(&self) -> Vec<String> {
        vec!["CPUExecutionProvider".to_owned()]
    }

    /// Writes the graph that ONNX Runtime makes of a model at a level of optimisation, which shows what it fused. Files above
    /// [`Optimization::Extended`] fit this machine alone.
    ///
    /// # Errors
    /// [`InferenceError`] when the model is refused or the file cannot be written.
    pub fn write_optimized(&self, model: &[u8], optimization: Optimization, path: &Path) -> Result<(), InferenceError> {
        let builder = self.builder(optimization)?;
        let mut builder = builder.with_optimized_model_path(path).map_err(InferenceError::ort("naming the optimised file"))?;
        builder.commit_from_memory(model).map_err(|source| InferenceError::ModelRefused { bytes: model.len(), source })?;
        Ok(())
    }

    pub(crate) fn session(&self, model: &[u8], optimization: Optimization) -> Result<Session, InferenceError> {
        let mut builder = self.builder(optimization)?;
        builder.commit_from_memory(model).map_err(|source| InferenceError::ModelRefused { bytes: model.len(), source })
    }

    fn builder(&self, optimization: Optimization) -> Result<SessionBuilder, InferenceError> {
        let level = match optimization {
            Optimization::Disabled => GraphOptimizationLevel::Disable,
            Optimization::Basic => GraphOptimizationLevel::Level1,
            Optimization::Extended => GraphOptimizationLevel::Level2,
            Optimization::All => GraphOptimizationLevel::All,
        };
        Session::builder(&self.environment)
            .map_err(InferenceError::ort("creating session options"))?
            .with_intra_threads(self.threads)
            .map_err(InferenceError::ort("setting the number of threads"))?
            // Idle pool threads sleep: a device shares its processor with the application.
            .with_intra_op_spinning(false)
            .map_err(InferenceError::ort("switching spinning off"))?
            .with_optimization_level(level)
            .map_err(InferenceError::ort("setting the optimisation level"))
    }
}

impl Runtime for OrtRuntime {
    fn load(&self, model: &[u8], optimization: Optimization) -> Result<Box<dyn LoadedModel>, RuntimeError> {
        Ok(Box::new(OrtModel::new(self.session(model, optimization)?)?))
    }

    fn time(&self, models: &[TimedModel], budget: Duration) -> Result<Vec<Timing>, RuntimeError> {
        Ok(timing::time(self, models, budget)?)
    }
}

fn open(path: &Path) -> Result<Environment, InferenceError> {
    // A variable cannot be set from here without unsafe code, so whoever starts this process must set it.
    check_telemetry(path, std::env::var_os(TELEMETRY_VARIABLE).as_deref())?;
    let environment = ort::init_from(path)
        .map_err(|source| InferenceError::LibraryRefused { path: path.to_owned(), source })?
        .with_name("pleach")
        .with_telemetry(false)
        .build()
        .map_err(InferenceError::ort("creating the environment"))?;
    environment.set_log_level(LogLevel::Warning);
    tracing::debug!(library = %path.display(), info = ort::info(), "ONNX Runtime is loaded");
    Ok(environment)
}

/// Refuses a library that knows the telemetry switch, and so has telemetry, unless the switch is set.
fn check_telemetry(library: &Path, switch: Option<&OsStr>) -> Result<(), InferenceError> {
    let unreadable = |source| InferenceError::LibraryUnreadable { path: library.to_owned(), source };
    if switch.is_none_or(|v| v != "1") && file_contains(library, TELEMETRY_VARIABLE.as_bytes()).map_err(unreadable)? {
        return Err(InferenceError::TelemetryOn { path: library.to_owned() });
    }
    Ok(())
}

/// Whether a file holds a byte string, read in pieces.
fn file_contains(path: &Path, needle: &[u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let finder = memchr::memmem::Finder::new(needle);
    let mut window = Vec::with_capacity(1 << 20);
    loop {
        let kept = window.len();
        if Read::by_ref(&mut file).take((1 << 20) - kept as u64).read_to_end(&mut window)? == 0 {
            return Ok(false);
        }
        if finder.find(&window).is_some() {
            return Ok(true);
        }
        window.drain(..window.len().saturating_sub(needle.len() - 1));
    }
}

/// Reads the version from the build information (`git-branch=rel-1.28.0`), else from the file's name (`libonnxruntime.so.1.28.0`).
fn version_of(info: &str, library: &Path) -> Option<String> {
    let is_version = |v: &&str| v.split('.').count() == 3 && v.split('.').all(|n| n.parse::<u32>().is_ok());
    let from_info = info.split([',', ' ']).filter_map(|part| part.trim().strip_prefix("git-branch=rel-")).find(is_version);
    let from_name = || library.file_name()?.to_str()?.split_once(".so.").map(|(_, v)| v).filter(is_version);
    from_info.or_else(from_name).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_version_from_build_or_file_name() {
        let plain = Path::new("/x/libonnxruntime.so");
        assert_eq!(version_of("ORT Build Info: git-branch=rel-1.28.0, git-commit-id=1", plain).as_deref(), Some("1.28.0"));
        let named = Path::new("/x/libonnxruntime.so.1.29.1");
        assert_eq!(version_of("ORT Build Info: git-branch=HEAD, git-commit-id=1", named).as_deref(), Some("1.29.1"));
        assert_eq!(version_of("", plain), None);
    }

    #[test]
    fn refuses_library_with_telemetry_unless_switched_off() {
        let mut library = tempfile::NamedTempFile::new().unwrap();
        assert!(check_telemetry(library.path(), None).is_ok());
        io::Write::write_all(&mut library, b"...\0ORT_DISABLE_TELEMETRY\0...").unwrap();
        for switch in [None, Some(OsStr::new("0")), Some(OsStr::new(""))] {
            assert!(matches!(check_telemetry(library.path(), switch), Err(InferenceError::TelemetryOn { .. })));
        }
        assert!(check_telemetry(library.path(), Some(OsStr::new("1"))).is_ok());
    }

    #[test]
    fn finds_bytes_across_pieces() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![b'x'; (1 << 20) - 3];
        bytes.extend_from_slice(b"needle");
        bytes.extend_from_slice(&[b'y'; 100]);
        io::Write::write_all(&mut file, &bytes).unwrap();
        assert!(file_contains(file.path(), b"needle").unwrap());
        assert!(!file_contains(file.path(), b"needles").unwrap());
    }
}
