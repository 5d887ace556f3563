//! Stores reports in groups: whatever has come while the last group was committed makes the next, so that one write to the disk
//! serves many devices. A report is acknowledged after it is committed, never before.

use pleach_store::StoreError;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::report::Incoming;
use super::status;
use crate::controller::Shared;
use crate::random;

/// Reports that wait; behind them devices wait, and their spools hold what they measure.
const QUEUE: usize = 1_024;
/// Most reports of one group, so that no other writer waits long.
const GROUP: usize = 256;

/// A report and who waits for it.
struct Waiting {
    report: Incoming,
    done: oneshot::Sender<Result<u64, Status>>,
}

/// The way in. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ingest(mpsc::Sender<Waiting>);

/// Starts storing; it ends when every [`Ingest`] is gone.
pub(super) fn start(controller: Shared) -> Ingest {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(run(controller, receiver));
    Ingest(sender)
}

impl Ingest {
    /// Stores a report. Answers the sequence up to which everything of its device is stored.
    pub(super) async fn store(&self, report: Incoming) -> Result<u64, Status> {
        let (done, stored) = oneshot::channel();
        let ended = || Status::unavailable("the controller ends");
        self.0.send(Waiting { report, done }).await.map_err(|_| ended())?;
        stored.await.map_err(|_| ended())?
    }
}

async fn run(controller: Shared, mut receiver: mpsc::Receiver<Waiting>) {
    let mut group = Vec::with_capacity(GROUP);
    while receiver.recv_many(&mut group, GROUP).await > 0 {
        let reports: Vec<&Incoming> = group.iter().map(|w| &w.report).collect();
        let answers = match write(&controller, &reports).await {
            Ok(answers) => answers,
            // One of them spoils the session: each gets its own, and only that one is refused.
            Err(_) => alone(&controller, &reports).await,
        };
        for (waiting, answer) in group.drain(..).zip(answers) {
            // A device that went away asks again.
            let _ = waiting.done.send(answer);
        }
        controller.wake.all();
    }
}

async fn write(controller: &Shared, reports: &[&Incoming]) -> Result<Vec<Result<u64, Status>>, StoreError> {
    let mut session = controller.store.write().await?;
    let now_ms = random::now_ms();
    let mut answers = Vec::with_capacity(reports.len());
    for report in reports {
        answers.push(report.write(&mut session, now_ms).await?);
    }
    session.commit().await?;
    Ok(answers)
}

async fn alone(controller: &Shared, reports: &[&Incoming]) -> Vec<Result<u64, Status>> {
    let mut answers = Vec::with_capacity(reports.len());
    for report in reports {
        let answer = write(controller, &[report]).await.map_err(status::store);
        answers.push(answer.and_then(|mut one| one.pop().unwrap_or_else(|| Err(Status::internal("no answer")))));
    }
    answers
}
