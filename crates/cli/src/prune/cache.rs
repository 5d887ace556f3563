//! What was found out about models, kept between runs: a file for each fact, under a name made of all it depends on.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::digest::{SHA256, digest};

use super::files;
use super::watch::Watch;

/// Most bytes kept; the oldest files go first.
const MOST_BYTES: u64 = 4 << 30;
/// What the names of all facts begin with.
const FACTS: [&str; 3] = ["analysis-", "atlas-", "width-step-"];
/// Part of every name: the version of what the files hold.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-2");

/// The cache, or nothing where there is no place for one.
#[derive(Debug)]
pub struct Cache(Option<PathBuf>);

/// The name of a fact that depends on `parts`, the first of which says what it is.
pub(super) fn name(parts: &[&str]) -> String {
    let mut all = VERSION.to_owned();
    parts.iter().for_each(|part| {
        all.push('\n');
        all.push_str(part);
    });
    let hash: String = digest(&SHA256, all.as_bytes()).as_ref().iter().take(16).map(|b| format!("{b:02x}")).collect();
    format!("{}-{hash}", parts.first().unwrap_or(&"fact"))
}

impl Cache {
    /// The cache in `folder`, else in the user's cache folder, else none.
    pub(super) fn open(disabled: bool, folder: Option<&Path>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let users = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache"))).map(|c| c.join("pleach"));
        let own = || variable("PLEACH_CACHE").or_else(users).map(|c| c.join("prune"));
        Self(if disabled { None } else { folder.map(Path::to_owned).or_else(own) })
    }

    /// A fact, where it is kept.
    pub(super) fn get(&self, name: &str) -> Option<Vec<u8>> {
        files::read(&self.0.as_ref()?.join(name), MOST_BYTES).ok()
    }

    /// Keeps a fact; a cache that cannot be written is worth a note, not a failure.
    pub(super) fn put(&self, name: &str, bytes: &[u8], watch: &Watch) {
        let Some(folder) = &self.0 else { return };
        let written = std::fs::create_dir_all(folder).map_err(anyhow::Error::from).and_then(|()| files::write(&folder.join(name), bytes));
        if let Err(error) = written.and_then(|()| Ok(tidy(folder, MOST_BYTES)?)) {
            watch.note(&format!("the next run will take as long as this one: {error:#}"));
        }
    }
}

/// Removes the oldest facts, and nothing else that lies there, until `most` bytes are left.
fn tidy(folder: &Path, most: u64) -> std::io::Result<()> {
    let mut found: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        let name = entry.file_name();
        if data.is_file() && FACTS.iter().any(|fact| name.to_string_lossy().starts_with(fact)) {
            found.push((data.modified()?, data.len(), entry.path()));
        }
    }
    found.sort();
    let mut left: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in found {
        if left <= most {
            break;
        }
        std::fs::remove_file(path)?;
        left -= bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_back_and_the_oldest_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, watch) = (Cache::open(false, Some(folder.path())), Watch::new());
        let (a, b) = (name(&["atlas", "x", "y"]), name(&["atlas", "xy"]));
        assert_ne!(a, b);
        cache.put(&a, b"older", &watch);
        let past = SystemTime::now() - std::time::Duration::from_secs(60);
        std::fs::File::options().write(true).open(folder.path().join(&a)).unwrap().set_modified(past).unwrap();
        cache.put(&b, b"newer", &watch);
        assert_eq!(cache.get(&a).as_deref(), Some(&b"older"[..]));
        std::fs::write(folder.path().join("thesis.tex"), [0; 99]).unwrap();
        tidy(folder.path(), 9).unwrap();
        assert!(folder.path().join("thesis.tex").exists(), "what is no fact is left alone");
        assert_eq!((cache.get(&a), cache.get(&b).as_deref()), (None, Some(&b"newer"[..])));
        assert_eq!(Cache::open(true, None).get(&a), None);
    }
}
