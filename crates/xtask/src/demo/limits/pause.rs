//! A share of a processor without privileges: the processes of a device run for a part of each period and are paused for the rest.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// One turn of running and pausing.
const PERIOD: Duration = Duration::from_millis(6);

/// Pauses and continues the processes of one device.
pub(super) struct Pauser {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    /// Share of the time they run, in thousandths.
    share_milli: AtomicU32,
    ended: AtomicBool,
}

impl Pauser {
    /// Pauses nothing yet.
    pub(super) fn new() -> Self {
        Self { shared: Arc::new(Shared { share_milli: AtomicU32::new(1_000), ended: AtomicBool::new(false) }), thread: Mutex::new(None) }
    }

    /// Sets the share of the time that the device runs, 0 to 1.
    pub(super) fn set_share(&self, share: f64) {
        self.shared.share_milli.store((share.clamp(0.05, 1.0) * 1_000.0) as u32, Ordering::Relaxed);
    }

    /// Begins with a process and its children.
    pub(super) fn watch(&self, id: u32) {
        let shared = Arc::clone(&self.shared);
        let handle = thread::spawn(move || turn(id, &shared));
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
    }
}

impl Drop for Pauser {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

fn turn(id: u32, shared: &Shared) {
    while !shared.ended.load(Ordering::Relaxed) {
        let share = f64::from(shared.share_milli.load(Ordering::Relaxed)) / 1_000.0;
        thread::sleep(PERIOD.mul_f64(share));
        if share < 1.0 {
            let family = family(id);
            send(&family, Signal::STOP);
            thread::sleep(PERIOD.mul_f64(1.0 - share));
            send(&family, Signal::CONT);
        }
    }
}

/// The process and its direct children: the two halves of an agent.
fn family(id: u32) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().filter_map(Result::ok);
    let children = threads.filter_map(|t| fs::read_to_string(t.path().join("children")).ok()).collect::<String>();
    let ids = children.split_whitespace().filter_map(|w| w.parse().ok()).chain(i32::try_from(id));
    ids.filter_map(Pid::from_raw).collect()
}

fn send(pids: &[Pid], signal: Signal) {
    for &pid in pids {
        // One that ended meanwhile needs neither.
        let _ = kill_process(pid, signal);
    }
}
