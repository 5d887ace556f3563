//! Budgets: what a variant must keep to on a class. The newest revision of a class and policy holds.

use pleach_domain::ClassId;
use pleach_domain::id::{DecisionId, ModelName, PolicyName};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use crate::column::{count, int, parse, parse_some};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// Which budget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BudgetKey {
    /// Class.
    pub class: ClassId,
    /// Policy.
    pub policy: PolicyName,
    /// Revision, from 1.
    pub revision: u32,
}

impl std::fmt::Display for BudgetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.class, self.policy, self.revision)
    }
}

/// A budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Which.
    pub key: BudgetKey,
    /// Revision of the policy it comes from.
    pub policy_revision: u32,
    /// Model.
    pub model: ModelName,
    /// Version of the model.
    pub model_version: u32,
    /// Largest predicted mean latency of a request, in microseconds.
    pub latency_us: f64,
    /// Largest model file in bytes.
    pub max_size_bytes: Option<u64>,
    /// Lowest accuracy on the validation set, 0 to 1.
    pub accuracy_floor: f64,
    /// Rows in one request.
    pub batch: u32,
    /// How channels are ranked, by the name that policies give it.
    pub criterion: String,
    /// Decision that set it; `None` for the first of a policy revision or model version.
    pub decision: Option<DecisionId>,
    /// When it was set.
    pub created_at_ms: i64,
}

#[derive(FromRow)]
struct Row {
    class: String,
    policy: String,
    revision: i64,
    policy_revision: i64,
    model: String,
    model_version: i64,
    latency_us: f64,
    max_size_bytes: Option<i64>,
    accuracy_floor: f64,
    batch: i64,
    criterion: String,
    decision: Option<String>,
    created_at_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT b.class, b.policy, b.revision, b.policy_revision, b.model, b.model_version, b.latency_us, b.max_size_bytes,
                b.accuracy_floor, b.batch, b.criterion, b.decision, b.created_at_ms
            FROM budgets b ",
            $rest
        )
    };
}

impl TryFrom<Row> for Budget {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        let key = BudgetKey {
            class: parse("budgets.class", &row.class)?,
            policy: parse("budgets.policy", &row.policy)?,
            revision: count("budgets.revision", row.revision)?,
        };
        Ok(Self {
            key,
            policy_revision: count("budgets.policy_revision", row.policy_revision)?,
            model: parse("budgets.model", &row.model)?,
            model_version: count("budgets.model_version", row.model_version)?,
            latency_us: row.latency_us,
            max_size_bytes: row.max_size_bytes.map(|n| count("budgets.max_size_bytes", n)).transpose()?,
            accuracy_floor: row.accuracy_floor,
            batch: count("budgets.batch", row.batch)?,
            criterion: row.criterion,
            decision: parse_some("budgets.decision", row.decision.as_deref())?,
            created_at_ms: row.created_at_ms,
        })
    }
}

/// Sets a budget. Answers whether that revision was free: of two who set the same, one wins.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn insert(session: &mut Session, budget: &Budget) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"INSERT INTO budgets (class, policy, revision, policy_revision, model, model_version, latency_us, max_size_bytes,
            accuracy_floor, batch, criterion, decision, created_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        ON CONFLICT (class, policy, revision) DO NOTHING",
    )
    .bind(budget.key.class.as_str())
    .bind(budget.key.policy.as_str())
    .bind(int(budget.key.revision))
    .bind(int(budget.policy_revision))
    .bind(budget.model.as_str())
    .bind(int(budget.model_version))
    .bind(budget.latency_us)
    .bind(budget.max_size_bytes.map(int))
    .bind(budget.accuracy_floor)
    .bind(int(budget.batch))
    .bind(&budget.criterion)
    .bind(budget.decision.as_ref().map(|d| d.as_str().to_owned()))
    .bind(budget.created_at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("budgets.insert"))?;
    Ok(done.rows_affected() == 1)
}

/// One budget.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn find(session: &mut Session, key: &BudgetKey) -> Result<Option<Budget>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE b.class = $1 AND b.policy = $2 AND b.revision = $3"))
        .bind(key.class.as_str())
        .bind(key.policy.as_str())
        .bind(int(key.revision))
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("budgets.find"))?
        .map(Budget::try_from)
        .transpose()
}

/// The budget that holds for a class under a policy.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn newest(session: &mut Session, class: &ClassId, policy: &PolicyName) -> Result<Option<Budget>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE b.class = $1 AND b.policy = $2 ORDER BY b.revision DESC LIMIT 1"))
        .bind(class.as_str())
        .bind(policy.as_str())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("budgets.newest"))?
        .map(Budget::try_from)
        .transpose()
}

/// Budgets that hold and have neither a variant nor a job, oldest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn unpruned(session: &mut Session, page: Page) -> Result<Vec<Budget>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "WHERE b.revision = (SELECT MAX(n.revision) FROM budgets n WHERE n.class = b.class AND n.policy = b.policy)
            AND NOT EXISTS (
                SELECT 1 FROM variants v WHERE v.class = b.class AND v.policy = b.policy AND v.budget_revision = b.revision)
            AND NOT EXISTS (
                SELECT 1 FROM jobs j
                WHERE j.kind = 'prune' AND j.subject = b.class || '/' || b.policy || '/' || CAST(b.revision AS TEXT))
        ORDER BY b.created_at_ms, b.class, b.policy
        LIMIT $1"
    ))
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("budgets.unpruned"))?
    .into_iter()
    .map(Budget::try_from)
    .collect()
}
