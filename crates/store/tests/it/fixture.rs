//! A fresh database with the rows that tests stand on.

use std::collections::BTreeMap;

use pleach_domain::class::Class;
use pleach_domain::id::VariantId;
use pleach_domain::policy::Policy;
use pleach_domain::state::{BundleState, VariantState};
use pleach_domain::{BundleId, ClassId, DeviceId, Digest};
use pleach_store::budgets::{Budget, BudgetKey};
use pleach_store::bundles::Bundle;
use pleach_store::devices::{Certificate, NewDevice};
use pleach_store::models::NewModel;
use pleach_store::tokens::Token;
use pleach_store::variants::Variant;
use pleach_store::{Session, Store, budgets, bundles, classes, devices, models, policies, tokens, variants};

pub struct Fixture {
    pub store: Store,
    pub url: String,
    _folder: tempfile::TempDir,
}

impl Fixture {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        Self::open(url, folder).await
    }

    pub async fn postgres() -> Self {
        let url = tokio::task::spawn_blocking(pleach_tests::postgres::database).await.unwrap();
        Self::open(url, tempfile::tempdir().unwrap()).await
    }

    async fn open(url: String, folder: tempfile::TempDir) -> Self {
        Self { store: Store::open(&url, 4, 1).await.unwrap(), url, _folder: folder }
    }

    pub async fn read(&self) -> Session {
        self.store.read().await.unwrap()
    }

    pub async fn write(&self) -> Session {
        self.store.write().await.unwrap()
    }

    /// A statement past the store, for tampering.
    pub async fn raw(&self, sql: &'static str) {
        use sqlx::{Connection, Executor};
        let mut connection = sqlx::AnyConnection::connect(&self.url).await.unwrap();
        connection.execute(sqlx::raw_sql(sql)).await.unwrap();
        connection.close().await.unwrap();
    }

    pub async fn token(&self, id: &str, uses_left: u32, expires_at_ms: i64) {
        let token = Token {
            id: id.parse().unwrap(),
            secret_sha256: digest(7),
            labels: BTreeMap::from([("site".to_owned(), "berlin".to_owned())]),
            uses_left,
            expires_at_ms,
            created_at_ms: 1,
        };
        let mut session = self.write().await;
        tokens::insert(&mut session, &token).await.unwrap();
        session.commit().await.unwrap();
    }

    /// A class `c` with devices `d0`, `d1`, …
    pub async fn class_of(&self, count: u8) -> Vec<DeviceId> {
        self.token("t", 100, i64::MAX).await;
        let mut session = self.write().await;
        classes::insert(&mut session, &class("c"), 1).await.unwrap();
        let mut ids = Vec::new();
        for n in 0..count {
            let device = device(n);
            devices::insert(&mut session, &device, 1).await.unwrap();
            assert!(devices::classify(&mut session, &device.id, &"c".parse().unwrap(), "told to", 2).await.unwrap());
            ids.push(device.id);
        }
        session.commit().await.unwrap();
        ids
    }

    /// A model `m`, version 1, and a policy `p` for it.
    pub async fn policy(&self) {
        let mut session = self.write().await;
        models::insert(&mut session, &model("m"), 1).await.unwrap();
        policies::apply(&mut session, &policy("p", 10_000), "token:a", 1).await.unwrap();
        session.commit().await.unwrap();
    }

    /// A budget revision of class `c` under `p`.
    pub async fn budget(&self, revision: u32, at_ms: i64) -> BudgetKey {
        let mut session = self.write().await;
        let budget = budget(revision, at_ms);
        assert!(budgets::insert(&mut session, &budget).await.unwrap());
        session.commit().await.unwrap();
        budget.key
    }

    pub async fn variant(&self, budget: &BudgetKey, at_ms: i64) -> VariantId {
        let mut session = self.write().await;
        let variant = variant(budget, at_ms);
        assert!(variants::insert(&mut session, &variant).await.unwrap());
        session.commit().await.unwrap();
        variant.id
    }

    pub async fn bundle(&self, variant: &VariantId, number: u8, at_ms: i64) -> BundleId {
        let mut session = self.write().await;
        let bundle = bundle(variant, number, at_ms);
        assert!(bundles::insert(&mut session, &bundle).await.unwrap());
        session.commit().await.unwrap();
        bundle.id
    }

    /// Everything up to a sealed bundle `b-<number>` of budget revision `number`.
    pub async fn sealed(&self, number: u8, at_ms: i64) -> BundleId {
        let budget = self.budget(u32::from(number), at_ms).await;
        let variant = self.variant(&budget, at_ms).await;
        self.bundle(&variant, number, at_ms).await
    }
}

pub fn digest(byte: u8) -> Digest {
    Digest::new([byte; 32])
}

pub fn class(id: &str) -> Class {
    Class {
        id: id.parse().unwrap(),
        architecture: "x86_64".into(),
        vector: "avx2".into(),
        inference_threads: 2,
        kernel_mean_us: BTreeMap::from([("k".to_owned(), 1.5)]),
    }
}

pub fn class_id() -> ClassId {
    "c".parse().unwrap()
}

pub fn device(n: u8) -> NewDevice {
    NewDevice {
        id: format!("d{n}").parse().unwrap(),
        token: "t".parse().unwrap(),
        labels: BTreeMap::new(),
        identity_key: [n; 32],
        sealing_key: [100 + n; 32],
        certificate: Certificate { serial: "01".into(), fingerprint: digest(n), expires_at_ms: 1_000 },
        boot_id: "boot".into(),
    }
}

pub fn model(name: &str) -> NewModel {
    NewModel {
        name: name.parse().unwrap(),
        task: "classification".into(),
        onnx: digest(1),
        calibration: digest(2),
        validation: digest(3),
        macs: 5_000_000_000,
        parameters: 11_000_000,
        size_bytes: 45_000_000,
    }
}

pub fn policy(name: &str, slo_p95_us: u64) -> Policy {
    let document = serde_json::json!({"name": name, "model": "m", "slo_p95_us": slo_p95_us, "accuracy_floor": 0.85});
    serde_json::from_value(document).unwrap()
}

pub fn budget(revision: u32, at_ms: i64) -> Budget {
    Budget {
        key: BudgetKey { class: class_id(), policy: "p".parse().unwrap(), revision },
        policy_revision: 1,
        model: "m".parse().unwrap(),
        model_version: 1,
        latency_us: 7_000.5,
        max_size_bytes: None,
        accuracy_floor: 0.85,
        batch: 1,
        criterion: "obs".into(),
        decision: None,
        created_at_ms: at_ms,
    }
}

pub fn variant(budget: &BudgetKey, at_ms: i64) -> Variant {
    Variant {
        id: format!("v-{}", budget.revision).parse().unwrap(),
        budget: budget.clone(),
        model: "m".parse().unwrap(),
        model_version: 1,
        budget_us: 7_000.5,
        state: VariantState::Made,
        digest: Some(digest(9)),
        report: serde_json::json!({"front": []}),
        rejection: None,
        created_at_ms: at_ms,
    }
}

pub fn bundle(variant: &VariantId, number: u8, at_ms: i64) -> Bundle {
    Bundle {
        id: format!("b-{number}").parse().unwrap(),
        variant: variant.clone(),
        class: class_id(),
        state: BundleState::Sealed,
        digest: digest(number),
        size_bytes: 1_000,
        tree_root: digest(200),
        leaves: vec![number; 64],
        suite: "aes-256-gcm".into(),
        content_key: vec![1, 0, 255],
        created_at_ms: at_ms,
    }
}
