//! Which boot of the machine this is.

use std::path::Path;

use crate::files;

/// The kernel's random id of this boot; empty where it has none.
pub fn id() -> String {
    let bytes = files::read_bounded(Path::new("/proc/sys/kernel/random/boot_id"), 64).ok().flatten().unwrap_or_default();
    String::from_utf8(bytes).map(|text| text.trim().to_owned()).unwrap_or_default()
}
