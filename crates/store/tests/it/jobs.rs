//! Jobs: one worker at a time, nothing lost when it vanishes.

use pleach_domain::state::JobState;
use pleach_store::jobs::{self, Job, Lease, NewJob};
use pleach_store::{Page, Session, Store};

use crate::fixture::Fixture;

on_both!(
    a_subject_has_one_job,
    of_two_claimers_one_gets_the_job,
    only_the_lease_changes_a_job,
    a_job_whose_worker_vanished_is_tried_again_and_then_given_up,
    a_cancelled_job_tells_its_worker,
    a_released_job_does_not_count_the_attempt,
);

fn job(n: u32) -> NewJob {
    NewJob { id: format!("j{n}").parse().unwrap(), kind: "prune".into(), subject: format!("s{n}"), payload: "{}".into() }
}

async fn queue(f: &Fixture, n: u32) {
    let mut session = f.write().await;
    assert!(jobs::enqueue(&mut session, &job(n), i64::from(n)).await.unwrap());
    session.commit().await.unwrap();
}

async fn claim(session: &mut Session, worker: &str, at_ms: i64) -> Option<(Lease, Job)> {
    jobs::claim(session, "prune", worker, at_ms + 100, at_ms).await.unwrap()
}

async fn only(session: &mut Session) -> Job {
    jobs::list(session, Page::default()).await.unwrap().pop().unwrap()
}

async fn a_subject_has_one_job(f: Fixture) {
    queue(&f, 1).await;
    let again = NewJob { id: "other".parse().unwrap(), ..job(1) };
    let mut session = f.write().await;
    assert!(!jobs::enqueue(&mut session, &again, 2).await.unwrap());
    assert!(jobs::enqueue(&mut session, &NewJob { kind: "other".into(), ..again }, 2).await.unwrap());
}

async fn of_two_claimers_one_gets_the_job(f: Fixture) {
    let race = |store: Store, worker: &'static str| async move {
        let mut session = store.write().await.unwrap();
        let claimed = claim(&mut session, worker, 10).await;
        session.commit().await.unwrap();
        claimed.is_some()
    };
    for n in 1..=10 {
        queue(&f, n).await;
        let a = tokio::spawn(race(f.store.clone(), "a"));
        let b = tokio::spawn(race(f.store.clone(), "b"));
        assert!(a.await.unwrap() ^ b.await.unwrap(), "job {n}");
    }
}

async fn only_the_lease_changes_a_job(f: Fixture) {
    queue(&f, 1).await;
    queue(&f, 2).await;
    let mut session = f.write().await;
    let (lease, claimed) = claim(&mut session, "a", 10).await.unwrap();
    assert_eq!((claimed.work, claimed.state, claimed.attempt), (job(1), JobState::Running, 1));
    let stranger = Lease { worker: "b".into(), ..lease.clone() };
    let earlier = Lease { attempt: 0, ..lease.clone() };
    for wrong in [stranger, earlier] {
        assert!(!jobs::heartbeat(&mut session, &wrong, "rank", 0.5, 500, 20).await.unwrap());
        assert!(!jobs::succeed(&mut session, &wrong, 20).await.unwrap());
        assert!(!jobs::fail(&mut session, &wrong, "no", 20).await.unwrap());
    }
    assert!(jobs::heartbeat(&mut session, &lease, "rank", 0.5, 500, 20).await.unwrap());
    let running = &jobs::live(&mut session, "prune", Page::default()).await.unwrap()[0];
    assert_eq!((running.stage.as_str(), running.progress), ("rank", 0.5));
    assert!(jobs::succeed(&mut session, &lease, 30).await.unwrap());
    assert!(!jobs::fail(&mut session, &lease, "too late", 31).await.unwrap());
    let (lease, _) = claim(&mut session, "a", 40).await.unwrap();
    assert!(jobs::fail(&mut session, &lease, "because", 41).await.unwrap());
    let last = only(&mut session).await;
    assert_eq!((last.state, last.error.as_deref()), (JobState::Failed, Some("because")));
    assert_eq!(claim(&mut session, "a", 50).await, None);
}

async fn a_job_whose_worker_vanished_is_tried_again_and_then_given_up(f: Fixture) {
    queue(&f, 1).await;
    let mut session = f.write().await;
    for attempt in 1..=3 {
        let now_ms = i64::from(attempt) * 1_000;
        let (lease, claimed) = claim(&mut session, "a", now_ms).await.unwrap();
        assert_eq!(claimed.attempt, attempt);
        assert_eq!(jobs::expire_leases(&mut session, 3, now_ms + 100).await.unwrap(), 0, "the lease still holds");
        assert_eq!(jobs::expire_leases(&mut session, 3, now_ms + 101).await.unwrap(), 1);
        assert!(!jobs::succeed(&mut session, &lease, now_ms + 102).await.unwrap(), "it comes back too late");
    }
    let given_up = only(&mut session).await;
    assert_eq!(given_up.state, JobState::Failed);
    assert!(given_up.error.unwrap().contains("attempt 3"));
    assert_eq!(claim(&mut session, "a", 9_000).await, None);
}

async fn a_cancelled_job_tells_its_worker(f: Fixture) {
    queue(&f, 1).await;
    let mut session = f.write().await;
    let (lease, _) = claim(&mut session, "a", 10).await.unwrap();
    assert!(jobs::cancel(&mut session, &lease.job, "newer budget", 20).await.unwrap());
    assert!(!jobs::cancel(&mut session, &lease.job, "again", 21).await.unwrap());
    assert!(!jobs::heartbeat(&mut session, &lease, "rank", 0.5, 500, 22).await.unwrap());
    assert!(!jobs::succeed(&mut session, &lease, 23).await.unwrap());
    assert_eq!(only(&mut session).await.state, JobState::Cancelled);
}

async fn a_released_job_does_not_count_the_attempt(f: Fixture) {
    queue(&f, 1).await;
    let mut session = f.write().await;
    let (lease, _) = claim(&mut session, "a", 10).await.unwrap();
    assert!(jobs::release(&mut session, &lease, 20).await.unwrap());
    assert!(!jobs::release(&mut session, &lease, 21).await.unwrap());
    let (_, claimed) = claim(&mut session, "b", 30).await.unwrap();
    assert_eq!(claimed.attempt, 1);
}
