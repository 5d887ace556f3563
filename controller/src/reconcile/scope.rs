//! Which policy governs which class, and the model that it means.

use std::collections::BTreeMap;

use pleach_domain::ClassId;
use pleach_domain::class::Class;
use pleach_store::measurements::AtlasKey;
use pleach_store::models::Model;
use pleach_store::policies::RevisedPolicy;
use pleach_store::{Page, Session, classes, models, policies};

use super::error::ReconcileError;

/// A class, the policy that governs it and the newest version of its model.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) class: Class,
    pub(crate) policy: RevisedPolicy,
    pub(crate) model: Model,
}

impl Scope {
    pub(crate) fn atlas(&self) -> AtlasKey {
        AtlasKey {
            class: self.class.id.clone(),
            model: self.model.content.name.clone(),
            model_version: self.model.version,
            batch: self.policy.policy.request_batch,
        }
    }

    /// The class and policy, for people.
    pub(crate) fn subject(&self) -> String {
        format!("{}/{}", self.class.id, self.policy.policy.name)
    }
}

/// Every class that a policy with a registered model governs.
pub(crate) async fn all(session: &mut Session) -> Result<Vec<Scope>, ReconcileError> {
    let policies = policies::list(session, Page::default()).await?;
    let (mut scopes, mut newest) = (Vec::new(), BTreeMap::new());
    for row in classes::list(session, Page::default()).await? {
        let Some(policy) = governing(&policies, &row.class.id) else { continue };
        let name = &policy.policy.model;
        if !newest.contains_key(name) {
            newest.insert(name.clone(), models::newest(session, name).await?);
        }
        if let Some(model) = newest.get(name).cloned().flatten() {
            scopes.push(Scope { class: row.class, policy: policy.clone(), model });
        }
    }
    Ok(scopes)
}

/// A device runs one bundle, so one policy governs a class: of those that cover it, the one applied last.
fn governing<'a>(policies: &'a [RevisedPolicy], class: &ClassId) -> Option<&'a RevisedPolicy> {
    let covering = policies.iter().filter(|p| p.policy.covers(class));
    covering.max_by(|a, b| (a.created_at_ms, &a.policy.name).cmp(&(b.created_at_ms, &b.policy.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, classes: &[&str], at_ms: i64) -> RevisedPolicy {
        let document = serde_json::json!({"name": name, "model": "m", "classes": classes, "slo_p95_us": 1_000, "accuracy_floor": 0.5});
        RevisedPolicy { revision: 1, policy: serde_json::from_value(document).unwrap(), applied_by: String::new(), created_at_ms: at_ms }
    }

    #[test]
    fn the_policy_applied_last_governs_among_those_that_cover() {
        let policies = [policy("all", &[], 5), policy("some", &["a"], 3), policy("later", &["b"], 9)];
        let name = |class: &str| governing(&policies, &class.parse().unwrap()).map(|p| p.policy.name.as_str().to_owned());
        assert_eq!(name("a").as_deref(), Some("all"));
        assert_eq!(name("b").as_deref(), Some("later"));
        assert_eq!(governing(&policies[1..2], &"c".parse().unwrap()), None);
    }
}
