//! Decisions of the adaptation loop: append-only, with their evidence, so that they can be replayed.

use pleach_domain::adapt::{Evidence, Outcome};
use pleach_domain::id::{DecisionId, ModelName, PolicyName};
use pleach_domain::{BundleId, ClassId};
use sqlx::FromRow;

use crate::column::{count, from_json, int, parse, to_json};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Identifier.
    pub id: DecisionId,
    /// Class.
    pub class: ClassId,
    /// Model.
    pub model: ModelName,
    /// Policy.
    pub policy: PolicyName,
    /// Revision of the policy that was asked.
    pub policy_revision: u32,
    /// Bundle that ran.
    pub bundle: BundleId,
    /// What was decided.
    pub outcome: Outcome,
    /// What it rests on.
    pub evidence: Evidence,
    /// Revision of the budget it wrote.
    pub budget_revision: Option<u32>,
    /// When.
    pub at_ms: i64,
}

#[derive(FromRow)]
struct Row {
    id: String,
    class: String,
    model: String,
    policy: String,
    policy_revision: i64,
    bundle: String,
    outcome: String,
    evidence: String,
    budget_revision: Option<i64>,
    at_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, class, model, policy, policy_revision, bundle, outcome, evidence, budget_revision, at_ms
            FROM decisions ",
            $rest
        )
    };
}

impl TryFrom<Row> for Decision {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("decisions.id", &row.id)?,
            class: parse("decisions.class", &row.class)?,
            model: parse("decisions.model", &row.model)?,
            policy: parse("decisions.policy", &row.policy)?,
            policy_revision: count("decisions.policy_revision", row.policy_revision)?,
            bundle: parse("decisions.bundle", &row.bundle)?,
            outcome: from_json("decisions.outcome", &row.outcome)?,
            evidence: from_json("decisions.evidence", &row.evidence)?,
            budget_revision: row.budget_revision.map(|n| count("decisions.budget_revision", n)).transpose()?,
            at_ms: row.at_ms,
        })
    }
}

/// Stores a decision.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn insert(session: &mut Session, decision: &Decision) -> Result<(), StoreError> {
    sqlx::query(
        r"INSERT INTO decisions (id, class, model, policy, policy_revision, bundle, outcome, evidence, budget_revision, at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(decision.id.as_str())
    .bind(decision.class.as_str())
    .bind(decision.model.as_str())
    .bind(decision.policy.as_str())
    .bind(int(decision.policy_revision))
    .bind(decision.bundle.as_str())
    .bind(to_json("decisions.outcome", &decision.outcome)?)
    .bind(to_json("decisions.evidence", &decision.evidence)?)
    .bind(decision.budget_revision.map(int))
    .bind(decision.at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("decisions.insert"))?;
    Ok(())
}

/// The newest decision for a class under a policy.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn newest(session: &mut Session, class: &ClassId, policy: &PolicyName) -> Result<Option<Decision>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE class = $1 AND policy = $2 ORDER BY at_ms DESC, id DESC LIMIT 1"))
        .bind(class.as_str())
        .bind(policy.as_str())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("decisions.newest"))?
        .map(Decision::try_from)
        .transpose()
}

/// The newest decisions, newest last.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<Decision>, StoreError> {
    let mut rows = sqlx::query_as::<_, Row>(select!("ORDER BY at_ms DESC, id DESC LIMIT $1"))
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("decisions.list"))?;
    rows.reverse();
    rows.into_iter().map(Decision::try_from).collect()
}
