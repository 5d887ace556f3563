//! A place for one piece of work that goes on while its owner does other things.

use std::future::pending;

use futures::future::BoxFuture;

/// Holds at most one future. Putting another one in, or clearing it, drops the one before, which ends its work.
pub(super) struct Slot<T>(Option<BoxFuture<'static, T>>);

impl<T> Slot<T> {
    pub(super) fn empty() -> Self {
        Self(None)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn put(&mut self, work: impl Future<Output = T> + Send + 'static) {
        self.0 = Some(Box::pin(work));
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// Waits for the work, for ever when there is none. May be dropped and called again without loss.
    pub(super) async fn done(&mut self) -> T {
        let Some(work) = &mut self.0 else { return pending().await };
        let output = work.await;
        self.0 = None;
        output
    }
}
