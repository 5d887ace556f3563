//! Waking reconcilers: whoever wrote a row says so, and whoever looks for work looks at once instead of at the next interval.

use tokio::sync::watch;

/// Says that something changed, to everybody at once. Cheap to clone; signals that nobody waits for are not lost, but become one.
#[derive(Clone, Debug)]
pub struct Wake(watch::Sender<u64>);

impl Default for Wake {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Wake {
    /// Wakes every listener.
    pub fn all(&self) {
        self.0.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// A listener: `changed().await` returns once for all signals since the last time.
    pub fn listen(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}
