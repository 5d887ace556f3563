//! When a staged bundle may be activated, and whether the device is hot or short of memory. Reads; decides nothing else.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::config::{Config, Window};

/// Share of time, in percent over ten seconds, that work waits for memory: more is pressure.
const MEMORY_STALL_PERCENT: f64 = 10.0;

/// Why activation has to wait; `None` when it may go on.
pub(super) fn hold(config: &Config, now_ms: i64) -> Option<String> {
    let windows = &config.maintenance_windows;
    if !windows.is_empty() && !windows.iter().any(|w| w.contains(now_ms)) {
        return Some(format!(
            "outside of the maintenance windows {}",
            windows.iter().map(Window::to_string).collect::<Vec<_>>().join(", ")
        ));
    }
    if let Some(path) = config.update_lock_file.as_deref().filter(|path| is_held(path)) {
        return Some(format!("the application holds {}", path.display()));
    }
    if config.activate_on_power_only && on_battery(Path::new("/sys/class/power_supply")) {
        return Some("the device runs on its battery".to_owned());
    }
    too_hot(config)
}

/// Whether slimmer rungs should serve.
pub(super) fn pressed(config: &Config) -> bool {
    too_hot(config).is_some() || memory_stalls(&fs::read_to_string("/proc/pressure/memory").unwrap_or_default())
}

fn too_hot(config: &Config) -> Option<String> {
    let most = f64::from(config.temperature_max_c?);
    let hottest = hottest_c(Path::new("/sys/class/thermal"))?;
    (hottest > most).then(|| format!("{hottest:.0} degrees, more than {most:.0}"))
}

/// Whether anybody holds a lock on the file. It is made where it is missing, so that applications can take it.
fn is_held(path: &Path) -> bool {
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o660).open(path).or_else(|_| File::open(path));
    match opened {
        Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the update lock cannot be looked at");
            false
        }
    }
}

/// Whether there are mains supplies and none is on line. Source: sysfs-class-power of the kernel.
fn on_battery(folder: &Path) -> bool {
    let read = |path: &Path, name: &str| fs::read_to_string(path.join(name)).map(|s| s.trim().to_owned()).unwrap_or_default();
    let supplies: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    let mut mains = supplies.iter().filter(|p| matches!(read(p, "type").as_str(), "Mains" | "USB")).peekable();
    mains.peek().is_some() && mains.all(|p| read(p, "online") != "1")
}

/// The hottest zone in degrees Celsius. Source: sysfs-class-thermal of the kernel.
fn hottest_c(folder: &Path) -> Option<f64> {
    let zones = fs::read_dir(folder).ok()?.flatten();
    let temperature = |path: &Path| fs::read_to_string(path.join("temp")).ok()?.trim().parse::<f64>().ok();
    zones.filter_map(|zone| temperature(&zone.path())).map(|milli| milli / 1000.0).max_by(f64::total_cmp)
}

/// Source: Documentation/accounting/psi.rst of the kernel.
fn memory_stalls(pressure: &str) -> bool {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "));
    let percent = some.and_then(|s| s.split(' ').find_map(|field| field.strip_prefix("avg10=")?.parse::<f64>().ok()));
    percent.is_some_and(|percent| percent > MEMORY_STALL_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, format!("controller = 'https://a:1'\n{text}")).unwrap();
        Config::load(Some(&path), &crate::config::Flags::default()).unwrap()
    }

    /// Milliseconds of a Thursday (the first of 1970), at an hour and a minute.
    fn thursday(hour: i64, minute: i64) -> i64 {
        (hour * 60 + minute) * 60_000
    }

    #[test]
    fn windows_hold_but_for_their_time_also_over_midnight_and_on_their_days() {
        let daily = config("maintenance_windows = ['02:00-04:30', '23:00-01:00']");
        for (hour, minute, open) in
            [(2, 0, true), (4, 29, true), (4, 30, false), (12, 0, false), (23, 30, true), (0, 59, true), (1, 0, false)]
        {
            assert_eq!(hold(&daily, thursday(hour, minute)).is_none(), open, "{hour}:{minute}");
        }
        let weekend = config("maintenance_windows = ['fri 22:00-02:00']");
        let day = 86_400_000;
        assert!(hold(&weekend, thursday(23, 0)).unwrap().contains("fri 22:00-02:00"));
        assert_eq!(hold(&weekend, thursday(23, 0) + day), None);
        assert_eq!(hold(&weekend, thursday(1, 0) + 2 * day), None);
        assert!(hold(&weekend, thursday(1, 0) + day).is_some());
        assert_eq!(hold(&config(""), 0), None);
    }

    #[test]
    fn an_update_lock_of_the_application_holds_while_it_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let config = config(&format!("update_lock_file = '{}'", path.display()));
        assert_eq!(hold(&config, 0), None);
        let application = File::open(&path).unwrap();
        flock(&application, FlockOperation::LockShared).unwrap();
        assert!(hold(&config, 0).unwrap().contains("application"));
        drop(application);
        assert_eq!(hold(&config, 0), None);
    }

    #[test]
    fn power_heat_and_memory_are_read_as_the_kernel_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let supply = |name: &str, kind: &str, online: &str| {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("type"), kind).unwrap();
            fs::write(folder.path().join(name).join("online"), online).unwrap();
        };
        assert!(!on_battery(folder.path()), "a device without supplies has no battery either");
        supply("BAT0", "Battery\n", "0\n");
        assert!(!on_battery(folder.path()));
        supply("AC", "Mains\n", "0\n");
        assert!(on_battery(folder.path()));
        supply("AC", "Mains\n", "1\n");
        assert!(!on_battery(folder.path()));
        for (zone, temp) in [("thermal_zone0", "41000\n"), ("thermal_zone1", "83500\n"), ("cooling_device0", "")] {
            fs::create_dir_all(folder.path().join(zone)).unwrap();
            fs::write(folder.path().join(zone).join("temp"), temp).unwrap();
        }
        assert_eq!(hottest_c(folder.path()), Some(83.5));
        assert!(memory_stalls("some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"));
        assert!(!memory_stalls("some avg10=0.00 avg60=50.00 avg300=0.00 total=1\n") && !memory_stalls(""));
    }
}
