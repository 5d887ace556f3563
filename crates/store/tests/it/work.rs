//! Stages find their work by what is missing.

use pleach_domain::adapt::{Evidence, Outcome};
use pleach_domain::profile::MeasuredKernel;
use pleach_domain::runtime::Timing;
use pleach_store::decisions::Decision;
use pleach_store::jobs::NewJob;
use pleach_store::measurements::{AtlasKey, Task, TaskState};
use pleach_store::trust::Metadata;
use pleach_store::{Page, atlases, budgets, bundles, decisions, desired, jobs, measurements, models, policies, trust, variants};

use crate::fixture::{Fixture, budget, class_id, digest, model, policy, variant};

on_both!(
    versions_and_revisions_count_up,
    a_measurement_is_answered_once_by_its_device,
    an_atlas_is_stored_once,
    only_the_newest_budget_without_variant_or_job_is_unpruned,
    only_variants_of_the_newest_budget_are_sealed,
    decisions_keep_their_evidence,
    metadata_versions_are_published_once,
);

async fn versions_and_revisions_count_up(f: Fixture) {
    let mut session = f.write().await;
    assert_eq!(models::insert(&mut session, &model("m"), 1).await.unwrap(), 1);
    assert_eq!(models::insert(&mut session, &model("m"), 2).await.unwrap(), 2);
    assert_eq!(models::insert(&mut session, &model("n"), 3).await.unwrap(), 1);
    let newest = models::newest(&mut session, &"m".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((newest.version, newest.content), (2, model("m")));
    assert_eq!(models::find(&mut session, &"m".parse().unwrap(), 3).await.unwrap(), None);
    assert_eq!(models::list(&mut session, Page::of(2)).await.unwrap().len(), 2);
    for (slo, revision) in [(1_000, 1), (1_000, 1), (2_000, 2), (1_000, 3)] {
        assert_eq!(policies::apply(&mut session, &policy("p", slo), "token:a", 1).await.unwrap(), revision);
    }
    let listed = policies::list(&mut session, Page::default()).await.unwrap();
    assert_eq!(listed.iter().map(|p| (p.revision, p.policy.slo_p95_us)).collect::<Vec<_>>(), [(3, 1_000)]);
}

fn atlas_key() -> AtlasKey {
    AtlasKey { class: class_id(), model: "m".parse().unwrap(), model_version: 1, batch: 4 }
}

async fn a_measurement_is_answered_once_by_its_device(f: Fixture) {
    let ids = f.class_of(2).await;
    let task = Task {
        id: "m1".into(),
        key: atlas_key(),
        device: ids[0].clone(),
        blob: digest(5),
        length: 77,
        budget_ms: 100,
        deadline_at_ms: 1_000,
    };
    let timing = Timing { mean_us: 1.25, min_us: 1.0, p50_us: 1.0, p95_us: 2.0, calls: 9 };
    let timings = vec![MeasuredKernel { key: "k".into(), timing }];
    let mut session = f.write().await;
    measurements::insert(&mut session, &task, 1).await.unwrap();
    let wanted = desired::of_device(&mut session, &ids[0]).await.unwrap();
    assert_eq!((wanted.deployment, wanted.measurements), (None, vec![task.clone()]));
    assert!(!measurements::finish(&mut session, "m1", &ids[1], &timings).await.unwrap(), "another device's task");
    assert!(measurements::finish(&mut session, "m1", &ids[0], &timings).await.unwrap());
    assert!(!measurements::finish(&mut session, "m1", &ids[0], &[]).await.unwrap());
    assert!(measurements::open_of_device(&mut session, &ids[0]).await.unwrap().is_empty());
    assert_eq!(measurements::of_atlas(&mut session, &atlas_key()).await.unwrap(), [(task.clone(), TaskState::Done(timings))]);
    assert!(measurements::fail(&mut session, "m1", &ids[0], "useless").await.unwrap());
    assert!(!measurements::fail(&mut session, "m1", &ids[0], "again").await.unwrap());
    assert_eq!(measurements::of_atlas(&mut session, &atlas_key()).await.unwrap(), [(task, TaskState::Failed("useless".into()))]);
}

async fn an_atlas_is_stored_once(f: Fixture) {
    let ids = f.class_of(1).await;
    let mut session = f.write().await;
    assert!(!atlases::exists(&mut session, &atlas_key()).await.unwrap());
    assert!(atlases::insert(&mut session, &atlas_key(), &ids[0], &vec![1.5], 1).await.unwrap());
    assert!(!atlases::insert(&mut session, &atlas_key(), &ids[0], &vec![2.5], 2).await.unwrap());
    assert!(atlases::exists(&mut session, &atlas_key()).await.unwrap());
    assert_eq!(atlases::find::<Vec<f64>>(&mut session, &atlas_key()).await.unwrap(), Some(vec![1.5]));
    assert!(atlases::find::<String>(&mut session, &atlas_key()).await.is_err(), "another type");
}

async fn only_the_newest_budget_without_variant_or_job_is_unpruned(f: Fixture) {
    f.class_of(1).await;
    f.policy().await;
    f.budget(1, 1).await;
    let newest = f.budget(2, 2).await;
    let mut session = f.write().await;
    assert!(!budgets::insert(&mut session, &budget(2, 3)).await.unwrap(), "the revision is taken");
    let unpruned = budgets::unpruned(&mut session, Page::default()).await.unwrap();
    assert_eq!(unpruned, [budget(2, 2)]);
    let job = NewJob { id: "j".parse().unwrap(), kind: "prune".into(), subject: newest.to_string(), payload: "{}".into() };
    assert!(jobs::enqueue(&mut session, &job, 3).await.unwrap());
    assert!(budgets::unpruned(&mut session, Page::default()).await.unwrap().is_empty(), "a job is on it");
    session.commit().await.unwrap();
    let third = f.budget(3, 4).await;
    assert_eq!(budgets::unpruned(&mut f.read().await, Page::default()).await.unwrap(), [budget(3, 4)]);
    f.variant(&third, 5).await;
    assert!(budgets::unpruned(&mut f.read().await, Page::default()).await.unwrap().is_empty(), "it has a variant");
    assert_eq!(budgets::newest(&mut f.read().await, &class_id(), &"p".parse().unwrap()).await.unwrap(), Some(budget(3, 4)));
}

async fn only_variants_of_the_newest_budget_are_sealed(f: Fixture) {
    f.class_of(1).await;
    f.policy().await;
    let first = f.budget(1, 1).await;
    f.variant(&first, 2).await;
    let mut session = f.write().await;
    assert!(!variants::insert(&mut session, &variant(&first, 9)).await.unwrap(), "the budget has one");
    assert_eq!(variants::unsealed(&mut session, Page::default()).await.unwrap(), [variant(&first, 2)]);
    session.commit().await.unwrap();
    let second = f.budget(2, 3).await;
    assert!(variants::unsealed(&mut f.read().await, Page::default()).await.unwrap().is_empty(), "its budget holds no more");
    let id = f.variant(&second, 4).await;
    f.bundle(&id, 1, 5).await;
    assert!(variants::unsealed(&mut f.read().await, Page::default()).await.unwrap().is_empty(), "it is sealed");
    let listed = variants::list(&mut f.read().await, Some(&class_id()), Page::of(1)).await.unwrap();
    assert_eq!(listed, [variant(&second, 4)], "the newest");
    let found = bundles::find_by_digest(&mut f.read().await, &digest(1)).await.unwrap().unwrap();
    assert_eq!((found.leaves, found.content_key), (vec![1; 64], vec![1, 0, 255]));
}

async fn decisions_keep_their_evidence(f: Fixture) {
    f.class_of(1).await;
    f.policy().await;
    let evidence = Evidence { devices: Vec::new(), planned_us: 0.1 + 0.2, budget_us: 7e3, front: Vec::new(), proven_seconds: 5 };
    let decision = |id: &str, at_ms| Decision {
        id: id.parse().unwrap(),
        class: class_id(),
        model: "m".parse().unwrap(),
        policy: "p".parse().unwrap(),
        policy_revision: 1,
        bundle: "b".parse().unwrap(),
        outcome: Outcome::PruneMore { budget_us: 1_234.5, reason: "slow".into() },
        evidence: evidence.clone(),
        budget_revision: Some(2),
        at_ms,
    };
    let mut session = f.write().await;
    decisions::insert(&mut session, &decision("d-1", 1)).await.unwrap();
    decisions::insert(&mut session, &decision("d-2", 2)).await.unwrap();
    assert_eq!(decisions::list(&mut session, Page::default()).await.unwrap(), [decision("d-1", 1), decision("d-2", 2)]);
    let newest = decisions::newest(&mut session, &class_id(), &"p".parse().unwrap()).await.unwrap();
    assert_eq!(newest, Some(decision("d-2", 2)), "and every float came back bit by bit");
}

async fn metadata_versions_are_published_once(f: Fixture) {
    let metadata = |version: u64| Metadata { version, bytes: vec![0, 255, version as u8], expires_at_ms: 9 };
    let mut session = f.write().await;
    for version in 1..=3 {
        assert!(trust::publish(&mut session, "root", &metadata(version), 1).await.unwrap());
    }
    assert!(!trust::publish(&mut session, "root", &Metadata { bytes: vec![6], ..metadata(3) }, 2).await.unwrap());
    assert_eq!(trust::newest(&mut session, "root").await.unwrap(), Some(metadata(3)));
    assert_eq!(trust::after(&mut session, "root", 1).await.unwrap(), [metadata(2), metadata(3)]);
    assert_eq!(trust::newest(&mut session, "release").await.unwrap(), None);
}
