//! The reconcilers that need no engine, one by one, over real rows and real keys, on both databases.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use pleach_artifact::{SealingKey, Suite, WrapContext, WrappedKey, unwrap};
use pleach_controller::authority::Authority;
use pleach_controller::keys::Keys;
use pleach_controller::presence::Presence;
use pleach_controller::reconcile::{Context, Progress, adapt, assign, classify, enlist, plan, progress, prune, publish, rollout};
use pleach_controller::wake::Wake;
use pleach_controller::{Config, Controller};
use pleach_domain::adapt::Outcome;
use pleach_domain::policy::Policy;
use pleach_domain::profile::{HardwareProfile, MeasuredKernel};
use pleach_domain::runtime::Timing;
use pleach_domain::state::{BundleState, JobState, Observed, RolloutState, VariantState};
use pleach_domain::window::Window;
use pleach_domain::{BundleId, ClassId, DeviceId, Digest, LatencyHistogram};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_store::assignments::Event;
use pleach_store::budgets::BudgetKey;
use pleach_store::bundles::Bundle;
use pleach_store::devices::{Certificate, NewDevice};
use pleach_store::measurements::AtlasKey;
use pleach_store::models::NewModel;
use pleach_store::tokens::Token;
use pleach_store::variants::Variant;
use pleach_store::{
    Blobs, Page, Store, assignments, atlases, audit, budgets, bundles, classes, decisions, desired, devices, jobs, models, policies,
    rollouts, tokens, trust, variants, windows,
};
use pleach_trust::{FleetMetadata, Recipient, RoleKeys, SigningKey, TrustedSet, UtcTime, sign, verify_assignment};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// A while after 2026 began, so that certificates and metadata are of a sane time.
pub(crate) const NOW_MS: i64 = 1_800_000_000_000;

on_both!(
    alike_devices_share_a_class,
    a_budget_follows_the_policy_and_the_model,
    a_newer_budget_takes_the_job_back,
    every_device_gets_an_assignment_that_it_accepts,
    a_new_key_of_any_role_is_in_force_without_a_device_refusing_anything,
    a_rollout_completes_on_evidence_from_every_device,
    a_broken_slo_sets_a_smaller_budget_once,
);

pub(crate) struct Fleet {
    pub(crate) context: Context,
    _folder: tempfile::TempDir,
}

fn timing(us: f64) -> Timing {
    Timing { mean_us: us, min_us: us, p50_us: us, p95_us: us, calls: 10 }
}

fn policy(slo_p95_us: u64) -> Policy {
    let rules = json!({"min_windows": 2, "min_requests": 20, "cooldown_seconds": 0});
    let document = json!({"name": "p", "model": "m", "slo_p95_us": slo_p95_us, "accuracy_floor": 0.8, "adaptation": rules});
    serde_json::from_value(document).unwrap()
}

impl Fleet {
    pub(crate) async fn open(url: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { data_dir: folder.path().to_owned(), database_url: url, ..Config::default() };
        std::fs::create_dir(config.blob_dir()).unwrap();
        let threads = NonZeroUsize::MIN;
        let runtime = OrtRuntime::new(OrtOptions { library: None, threads });
        let runtime = runtime.expect("set ORT_DYLIB_PATH to the ONNX Runtime 1.28 library");
        let keys = Keys::open(&config.key_dir()).unwrap();
        let authority = Authority::open(&config.key_dir(), &config.ca_file(), Duration::from_secs(3_600), NOW_MS).unwrap();
        let store = Store::open(&config.database_url(), 4, NOW_MS).await.unwrap();
        let blobs = Blobs::local(&config.blob_dir()).unwrap();
        publish::ensure(&store, &keys, NOW_MS).await.unwrap();
        let (presence, wake, stop) = (Presence::default(), Wake::default(), CancellationToken::new());
        let controller = Controller { config, store, blobs, keys, authority, runtime, presence, wake, stop };
        Self { context: Context::new(Arc::new(controller)).unwrap(), _folder: folder }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.context.store
    }

    /// Enrols devices with profiles whose kernels take these times.
    async fn enrol(&self, kernel_us: &[f64]) -> Vec<(DeviceId, SealingKey)> {
        let mut session = self.store().write().await.unwrap();
        let labels = tokens::Labels::new();
        let (id, secret_sha256) = ("t".parse().unwrap(), Digest::new([0; 32]));
        let token = Token { id, secret_sha256, labels: labels.clone(), uses_left: 9, expires_at_ms: i64::MAX, created_at_ms: NOW_MS };
        tokens::insert(&mut session, &token).await.unwrap();
        session.commit().await.unwrap();
        let mut enrolled = Vec::new();
        for (n, us) in kernel_us.iter().enumerate() {
            enrolled.push(self.enrol_one(&format!("d{n}"), *us).await);
        }
        enrolled
    }

    pub(crate) async fn enrol_one(&self, name: &str, kernel_us: f64) -> (DeviceId, SealingKey) {
        let mut session = self.store().write().await.unwrap();
        let known = devices::list(&mut session, Page::default()).await.unwrap().len();
        let sealing = SealingKey::generate().unwrap();
        let byte = u8::try_from(known).unwrap();
        {
            let device = NewDevice {
                id: name.parse().unwrap(),
                token: "t".parse().unwrap(),
                labels: tokens::Labels::new(),
                identity_key: [byte; 32],
                sealing_key: *sealing.public_key().unwrap().as_bytes(),
                certificate: Certificate { serial: "01".into(), fingerprint: Digest::new([byte; 32]), expires_at_ms: i64::MAX },
                boot_id: "boot".into(),
            };
            devices::insert(&mut session, &device, NOW_MS + known as i64).await.unwrap();
            let profile = HardwareProfile {
                architecture: "x86_64".into(),
                instruction_sets: vec!["avx2".into()],
                cores: 2,
                inference_threads: 2,
                kernels: vec![MeasuredKernel { key: "conv".into(), timing: timing(kernel_us) }],
                ..HardwareProfile::default()
            };
            devices::set_profile(&mut session, &device.id, &profile, NOW_MS).await.unwrap();
            session.commit().await.unwrap();
            (device.id, sealing)
        }
    }

    async fn apply(&self, slo_p95_us: u64) {
        let mut session = self.store().write().await.unwrap();
        policies::apply(&mut session, &policy(slo_p95_us), "token:first", NOW_MS).await.unwrap();
        session.commit().await.unwrap();
    }

    /// Another revision of the policy, with these rules of rollout.
    pub(crate) async fn apply_rollout(&self, rules: serde_json::Value) {
        let policy = Policy { rollout: serde_json::from_value(rules).unwrap(), ..policy(10_000) };
        policy.validate().unwrap();
        let mut session = self.store().write().await.unwrap();
        policies::apply(&mut session, &policy, "token:first", NOW_MS).await.unwrap();
        session.commit().await.unwrap();
    }

    async fn register(&self) {
        let mut session = self.store().write().await.unwrap();
        let files = Digest::new([5; 32]);
        let model = NewModel {
            name: "m".parse().unwrap(),
            task: "classification".into(),
            onnx: files,
            calibration: files,
            validation: files,
            macs: 1,
            parameters: 1,
            size_bytes: 1,
        };
        let version = models::insert(&mut session, &model, NOW_MS).await.unwrap();
        let class = classes::list(&mut session, Page::of(1)).await.unwrap().remove(0).class.id;
        let key = AtlasKey { class, model: model.name, model_version: version, batch: 1 };
        atlases::insert(&mut session, &key, &"d0".parse().unwrap(), &json!({}), NOW_MS).await.unwrap();
        session.commit().await.unwrap();
    }

    /// Two classified devices, a model with its atlas, a policy and its first budget.
    async fn planned(&self) -> (Vec<(DeviceId, SealingKey)>, BudgetKey) {
        self.planned_of(&[10.0, 10.5]).await
    }

    /// As [`Fleet::planned`], with these devices.
    pub(crate) async fn planned_of(&self, kernel_us: &[f64]) -> (Vec<(DeviceId, SealingKey)>, BudgetKey) {
        let enrolled = self.enrol(kernel_us).await;
        classify::run(&self.context, NOW_MS).await.unwrap();
        self.register().await;
        self.apply(10_000).await;
        assert_eq!(plan::run(&self.context, NOW_MS).await.unwrap(), Progress::Something);
        (enrolled, self.newest().await)
    }

    pub(crate) async fn newest(&self) -> BudgetKey {
        let class = self.class().await;
        let mut session = self.store().read().await.unwrap();
        budgets::newest(&mut session, &class, &"p".parse().unwrap()).await.unwrap().unwrap().key
    }

    async fn class(&self) -> ClassId {
        classes::list(&mut self.store().read().await.unwrap(), Page::of(1)).await.unwrap().remove(0).class.id
    }

    /// Stands in for engine and sealing: a variant with a report, in a bundle under a real key.
    pub(crate) async fn seal(&self, budget: &BudgetKey, at_ms: i64) -> BundleId {
        let mut ciphertext = Vec::new();
        let payload = b"not a model, but nobody here opens it";
        let sealed = pleach_artifact::seal(&mut &payload[..], payload.len() as u64, Suite::Aes256Gcm, &mut ciphertext).unwrap();
        let front = json!([{"latency_us": 2_000.0, "divergence": 0.2}, {"latency_us": 7_000.0, "divergence": 0.01}]);
        let variant = Variant {
            id: format!("v-{}", budget.revision).parse().unwrap(),
            budget: budget.clone(),
            model: "m".parse().unwrap(),
            model_version: 1,
            budget_us: 7_000.0,
            state: VariantState::Made,
            digest: Some(Digest::new([6; 32])),
            report: json!({"front": front, "predicted_latency_p50_us": 7_000.0}),
            rejection: None,
            created_at_ms: at_ms,
        };
        let bundle = Bundle {
            id: format!("b-{}", budget.revision).parse().unwrap(),
            variant: variant.id.clone(),
            class: budget.class.clone(),
            state: BundleState::Sealed,
            digest: sealed.digest,
            size_bytes: sealed.length,
            tree_root: sealed.tree_root,
            leaves: sealed.leaves.encode(),
            suite: sealed.suite.name().into(),
            content_key: self.context.keys.content.encrypt(&sealed.content_key, &sealed.digest).unwrap(),
            created_at_ms: at_ms,
        };
        let mut session = self.store().write().await.unwrap();
        variants::insert(&mut session, &variant).await.unwrap();
        bundles::insert(&mut session, &bundle).await.unwrap();
        publish::refresh(&mut session, &self.context.keys, at_ms).await.unwrap();
        session.commit().await.unwrap();
        bundle.id
    }

    /// A bundle of the first budget, assigned to both devices.
    async fn assigned(&self) -> Vec<(DeviceId, SealingKey)> {
        let (enrolled, budget) = self.planned().await;
        self.seal(&budget, NOW_MS).await;
        assert_eq!(rollout::run(&self.context, NOW_MS).await.unwrap(), Progress::Something);
        assert_eq!(enlist::run(&self.context, NOW_MS).await.unwrap(), Progress::Something);
        assert_eq!(enlist::run(&self.context, NOW_MS).await.unwrap(), Progress::Nothing);
        assert_eq!(assign::run(&self.context, NOW_MS).await.unwrap(), Progress::Something);
        enrolled
    }

    /// The newest metadata and every root.
    async fn metadata(&self) -> FleetMetadata {
        let mut session = self.store().read().await.unwrap();
        let roots = trust::after(&mut session, "root", 0).await.unwrap().into_iter().map(|root| root.bytes).collect();
        let mut newest = async |role: &str| trust::newest(&mut session, role).await.unwrap().unwrap().bytes;
        let (timestamp, snapshot) = (newest("timestamp").await, newest("snapshot").await);
        FleetMetadata { roots, timestamp, snapshot, targets: newest("targets").await, release: newest("release").await }
    }

    pub(crate) async fn prove(&self, device: &DeviceId, at_ms: i64) {
        let mut session = self.store().write().await.unwrap();
        let assigned = desired::of_device(&mut session, device).await.unwrap().deployment.unwrap();
        let event = Event {
            device,
            sequence: assigned.sequence,
            digest: &assigned.digest,
            state: Observed::Proven,
            failed_check: None,
            detail: None,
        };
        assert_eq!(assignments::observe(&mut session, &event, at_ms).await.unwrap(), Some(Observed::Offered));
        session.commit().await.unwrap();
    }

    async fn actions(&self) -> Vec<String> {
        let mut session = self.store().read().await.unwrap();
        assert!(audit::verify(&mut session).await.is_ok());
        audit::list(&mut session, 0, Page::default()).await.unwrap().into_iter().map(|e| e.action).collect()
    }
}

async fn alike_devices_share_a_class(fleet: Fleet) {
    fleet.enrol(&[10.0, 11.0, 30.0]).await;
    assert_eq!(classify::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Something);
    assert_eq!(classify::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Nothing);
    let mut session = fleet.store().read().await.unwrap();
    let counts: Vec<u64> = classes::list(&mut session, Page::default()).await.unwrap().iter().map(|c| c.devices).collect();
    assert_eq!(counts.iter().sum::<u64>(), 3);
    assert_eq!(counts.len(), 2);
    let class_of = async |id: &str, session: &mut pleach_store::Session| {
        devices::find(session, &id.parse().unwrap()).await.unwrap().unwrap().class.unwrap()
    };
    assert_eq!(class_of("d0", &mut session).await, class_of("d1", &mut session).await);
    assert_ne!(class_of("d0", &mut session).await, class_of("d2", &mut session).await);
    drop(session);
    assert_eq!(fleet.actions().await.iter().filter(|a| *a == "class.found").count(), 2);
}

async fn a_budget_follows_the_policy_and_the_model(fleet: Fleet) {
    let (_, first) = fleet.planned().await;
    let budget = budgets::find(&mut fleet.store().read().await.unwrap(), &first).await.unwrap().unwrap();
    assert_eq!((budget.key.revision, budget.latency_us, budget.accuracy_floor), (1, 7_000.0, 0.8));
    assert_eq!(plan::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Nothing);
    fleet.apply(20_000).await;
    assert_eq!(plan::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Something);
    let second = fleet.newest().await;
    let budget = budgets::find(&mut fleet.store().read().await.unwrap(), &second).await.unwrap().unwrap();
    assert_eq!((budget.key.revision, budget.policy_revision, budget.latency_us), (2, 2, 14_000.0));
    fleet.register().await;
    assert_eq!(plan::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Something);
    assert_eq!(fleet.newest().await.revision, 3);
}

async fn a_newer_budget_takes_the_job_back(fleet: Fleet) {
    fleet.planned().await;
    assert_eq!(prune::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Something);
    assert_eq!(prune::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Nothing);
    let mut session = fleet.store().write().await.unwrap();
    let (lease, _) = jobs::claim(&mut session, "prune", "w", NOW_MS + 1_000, NOW_MS).await.unwrap().unwrap();
    session.commit().await.unwrap();
    fleet.apply(20_000).await;
    plan::run(&fleet.context, NOW_MS).await.unwrap();
    assert_eq!(prune::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Something);
    let mut session = fleet.store().write().await.unwrap();
    assert!(!jobs::heartbeat(&mut session, &lease, "rank", 0.5, NOW_MS + 2_000, NOW_MS).await.unwrap(), "its worker is told");
    let (_, second) = jobs::claim(&mut session, "prune", "w", NOW_MS + 1_000, NOW_MS).await.unwrap().unwrap();
    assert!(second.work.subject.ends_with("/p/2"));
    session.commit().await.unwrap();
    assert_eq!(prune::run(&fleet.context, NOW_MS + 1_001).await.unwrap(), Progress::Something, "its worker is silent");
    let listed = jobs::list(&mut fleet.store().read().await.unwrap(), Page::default()).await.unwrap();
    let mut states: Vec<_> = listed.into_iter().map(|j| j.state).collect();
    states.sort();
    assert_eq!(states, [JobState::Queued, JobState::Cancelled]);
}

async fn every_device_gets_an_assignment_that_it_accepts(fleet: Fleet) {
    let enrolled = fleet.assigned().await;
    assert_eq!(assign::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Nothing);
    assert_eq!(rollout::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Nothing);
    let (class, now) = (fleet.class().await, UtcTime::from_unix_s(NOW_MS / 1_000));
    let metadata = fleet.metadata().await;
    let mut set = TrustedSet::new(&metadata.roots[0], now).unwrap();
    metadata.apply(&mut set, now).unwrap();
    let mut session = fleet.store().read().await.unwrap();
    for (device, sealing) in &enrolled {
        let assigned = desired::of_device(&mut session, device).await.unwrap().deployment.unwrap();
        let recipient = Recipient { device: device.as_str(), class: Some(class.as_str()) };
        let agreed = verify_assignment(&set, &assigned.metadata, recipient, None).unwrap();
        assert_eq!((agreed.sequence, agreed.bundle.as_bytes()), (1, assigned.digest.as_bytes()));
        let model = "m".parse().unwrap();
        let binding = WrapContext { device, bundle: &assigned.digest, model: &model, model_version: 1, class: &class, sequence: 1 };
        let key = unwrap(&WrappedKey::from_slice(&assigned.wrap).unwrap(), sealing, &binding).unwrap();
        let bundle = bundles::find_by_digest(&mut session, &assigned.digest).await.unwrap().unwrap();
        assert_eq!(key, fleet.context.keys.content.decrypt(&bundle.content_key, &bundle.digest).unwrap());
        let other = enrolled.iter().find(|(id, _)| id != device).unwrap();
        let stolen = Recipient { device: other.0.as_str(), class: None };
        assert!(verify_assignment(&set, &assigned.metadata, stolen, None).is_err(), "nobody else's");
    }
    drop(session);
    // Half of the statements' life later they are signed anew, under the same sequence.
    let later_ms = NOW_MS + 20 * 24 * 3_600_000;
    assert_eq!(assign::run(&fleet.context, later_ms).await.unwrap(), Progress::Something);
    assert_eq!(assign::run(&fleet.context, later_ms).await.unwrap(), Progress::Nothing);
    assert_eq!(publish::run(&fleet.context, later_ms).await.unwrap(), Progress::Something);
    let deployments = assignments::deployments(&mut fleet.store().read().await.unwrap(), Page::default()).await.unwrap();
    assert_eq!(deployments.iter().map(|d| (d.sequence, d.state)).collect::<Vec<_>>(), [(1, Observed::Offered); 2]);
}

async fn a_new_key_of_any_role_is_in_force_without_a_device_refusing_anything(fleet: Fleet) {
    let enrolled = fleet.assigned().await;
    let (now, keys) = (UtcTime::from_unix_s(NOW_MS / 1_000), fleet.context.config.key_dir());
    let metadata = fleet.metadata().await;
    let mut set = TrustedSet::new(&metadata.roots[0], now).unwrap();
    metadata.apply(&mut set, now).unwrap();
    let file = |role: &str, end: &str| keys.join(format!("{role}{end}"));
    for (step, role) in ["root", "targets", "snapshot", "timestamp", "release", "director"].into_iter().enumerate() {
        std::fs::rename(file(role, ".pem"), file(role, ".previous.pem")).unwrap();
        let at_ms = NOW_MS + 1_000 * (step as i64 + 1);
        let renewed = Keys::open(&keys).unwrap();
        assert!(publish::ensure(fleet.store(), &renewed, at_ms).await.unwrap(), "{role}");
        assert!(!publish::ensure(fleet.store(), &renewed, at_ms).await.unwrap(), "{role}: once");
        let (before, metadata) = (set.clone(), fleet.metadata().await);
        metadata.apply(&mut set, now).unwrap();
        for (device, _) in &enrolled {
            let mut session = fleet.store().read().await.unwrap();
            let statement = desired::of_device(&mut session, device).await.unwrap().deployment.unwrap().metadata;
            let recipient = Recipient { device: device.as_str(), class: None };
            assert_eq!(verify_assignment(&set, &statement, recipient, None).unwrap().sequence, 1, "{role}");
            assert_eq!(verify_assignment(&before, &statement, recipient, None).is_ok(), role != "director", "{role}");
        }
    }
    assert_eq!(set.root().version(), 5, "root, targets, snapshot and timestamp stand in the root");

    // The root goes to two people; the key that is left here can change it no more, and everything else goes on.
    let people = [SigningKey::generate().unwrap(), SigningKey::generate().unwrap()];
    let mut root = set.root().content().clone();
    let ids: Vec<_> = people.iter().map(|key| key.public_key().key_id().unwrap()).collect();
    root.keys.extend(ids.iter().cloned().zip(people.iter().map(SigningKey::public_key)));
    root.roles.insert("root".into(), RoleKeys::new(ids, 2));
    root.common.version += 1;
    let own = Keys::open(&keys).unwrap().fleet.root;
    std::fs::write(keys.join("root.next.json"), sign(&root, &[&own, &people[0], &people[1]]).unwrap()).unwrap();
    let at_ms = NOW_MS + 60_000;
    let elsewhere = Keys::open(&keys).unwrap();
    assert!(publish::ensure(fleet.store(), &elsewhere, at_ms).await.unwrap());
    assert!(!publish::ensure(fleet.store(), &elsewhere, at_ms).await.unwrap());
    fleet.metadata().await.apply(&mut set, now).unwrap();
    assert_eq!(set.root().version(), 6);
    std::fs::rename(file("timestamp", ".pem"), file("timestamp", ".previous.pem")).unwrap();
    let refused = publish::ensure(fleet.store(), &Keys::open(&keys).unwrap(), at_ms).await.unwrap_err();
    assert!(refused.to_string().contains("root") || format!("{refused:?}").contains("Threshold"), "{refused:?}");
}

async fn a_rollout_completes_on_evidence_from_every_device(fleet: Fleet) {
    let enrolled = fleet.assigned().await;
    for (device, _) in &enrolled {
        assert_eq!(progress::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Nothing);
        fleet.prove(device, NOW_MS).await;
    }
    assert_eq!(progress::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Something);
    let rollout = rollouts::newest(&mut fleet.store().read().await.unwrap(), &fleet.class().await).await.unwrap().unwrap();
    let counts = rollouts::counts(&mut fleet.store().read().await.unwrap(), &rollout).await.unwrap();
    assert_eq!((rollout.state, counts.members, counts.proven), (RolloutState::Completed, 2, 2));
    let order = ["class.found", "budget.set", "rollout.begin", "device.assign", "rollout.complete"];
    let actions = fleet.actions().await;
    let at: Vec<_> = order.iter().map(|a| actions.iter().position(|b| a == b).unwrap()).collect();
    assert!(at.is_sorted(), "{actions:?}");
}

async fn a_broken_slo_sets_a_smaller_budget_once(fleet: Fleet) {
    let enrolled = fleet.assigned().await;
    assert_eq!(adapt::run(&fleet.context, NOW_MS).await.unwrap(), Progress::Nothing, "nothing is proven yet");
    for (device, _) in &enrolled {
        fleet.prove(device, NOW_MS).await;
    }
    let report = async |number: u64, latency_us: u64, at_ms: i64| {
        let mut session = fleet.store().write().await.unwrap();
        for (device, _) in &enrolled {
            let bundle = desired::of_device(&mut session, device).await.unwrap().deployment.unwrap().digest;
            let mut latency = LatencyHistogram::new();
            (0..100).for_each(|_| latency.record_us(latency_us));
            let window = Window {
                number,
                bundle,
                rung: "full".into(),
                start_ms: at_ms,
                duration_ms: 1_000,
                requests: 100,
                errors: 0,
                latency,
                confusion: None,
                cpu_us: 1,
                memory_bytes: 1,
            };
            windows::insert(&mut session, device, &window, at_ms).await.unwrap();
        }
        session.commit().await.unwrap();
    };
    let kinds = async || {
        let decided = decisions::list(&mut fleet.store().read().await.unwrap(), Page::default()).await.unwrap();
        decided.into_iter().map(|d| (matches!(d.outcome, Outcome::PruneMore { .. }), d.budget_revision)).collect::<Vec<_>>()
    };
    for number in 1..=4 {
        report(number, 8_000, NOW_MS + 1 + number as i64).await;
    }
    assert_eq!(adapt::run(&fleet.context, NOW_MS + 10).await.unwrap(), Progress::Something);
    assert_eq!(adapt::run(&fleet.context, NOW_MS + 11).await.unwrap(), Progress::Nothing, "the same hold");
    assert_eq!(kinds().await, [(false, None)]);
    // The newest windows count; what was before does not hide that the devices have become slow.
    report(5, 14_000, NOW_MS + 20).await;
    report(6, 14_000, NOW_MS + 21).await;
    assert_eq!(adapt::run(&fleet.context, NOW_MS + 30).await.unwrap(), Progress::Something);
    assert_eq!(adapt::run(&fleet.context, NOW_MS + 31).await.unwrap(), Progress::Nothing, "a new budget is on its way");
    assert_eq!(kinds().await, [(false, None), (true, Some(2))]);
    let budget = budgets::find(&mut fleet.store().read().await.unwrap(), &fleet.newest().await).await.unwrap().unwrap();
    assert_eq!((budget.key.revision, budget.decision.is_some()), (2, true));
    assert!((budget.latency_us - 4_250.0).abs() < 50.0, "{}", budget.latency_us);
    assert_eq!(prune::run(&fleet.context, NOW_MS + 40).await.unwrap(), Progress::Something);
}
