//! Variants: one pruned model for one class and budget.

use pleach_domain::id::{ModelName, VariantId};
use pleach_domain::state::VariantState;
use pleach_domain::{ClassId, Digest};
use sqlx::FromRow;

use crate::budgets::BudgetKey;
use crate::column::{count, from_json, int, parse, parse_some, to_json};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// A variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Identifier.
    pub id: VariantId,
    /// The budget it was made for; also its class.
    pub budget: BudgetKey,
    /// Model.
    pub model: ModelName,
    /// Version of the model.
    pub model_version: u32,
    /// The budget's latency, in microseconds.
    pub budget_us: f64,
    /// State.
    pub state: VariantState,
    /// The pruned ONNX file, a blob; `None` when rejected.
    pub digest: Option<Digest>,
    /// The engine's report.
    pub report: serde_json::Value,
    /// For a rejected one: which floor or budget, and the nearest feasible point.
    pub rejection: Option<String>,
    /// When it was made.
    pub created_at_ms: i64,
}

#[derive(FromRow)]
struct Row {
    id: String,
    class: String,
    policy: String,
    budget_revision: i64,
    model: String,
    model_version: i64,
    budget_us: f64,
    state: String,
    digest: Option<String>,
    report: String,
    rejection: Option<String>,
    created_at_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT v.id, v.class, v.policy, v.budget_revision, v.model, v.model_version, v.budget_us, v.state, v.digest, v.report,
                v.rejection, v.created_at_ms
            FROM variants v ",
            $rest
        )
    };
}

impl TryFrom<Row> for Variant {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        let budget = BudgetKey {
            class: parse("variants.class", &row.class)?,
            policy: parse("variants.policy", &row.policy)?,
            revision: count("variants.budget_revision", row.budget_revision)?,
        };
        Ok(Self {
            id: parse("variants.id", &row.id)?,
            budget,
            model: parse("variants.model", &row.model)?,
            model_version: count("variants.model_version", row.model_version)?,
            budget_us: row.budget_us,
            state: parse("variants.state", &row.state)?,
            digest: parse_some("variants.digest", row.digest.as_deref())?,
            report: from_json("variants.report", &row.report)?,
            rejection: row.rejection,
            created_at_ms: row.created_at_ms,
        })
    }
}

/// Stores a variant. Answers whether its budget had none.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn insert(session: &mut Session, variant: &Variant) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"INSERT INTO variants (id, class, policy, budget_revision, model, model_version, budget_us, state, digest, report, rejection,
            created_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        ON CONFLICT (class, policy, budget_revision) DO NOTHING",
    )
    .bind(variant.id.as_str())
    .bind(variant.budget.class.as_str())
    .bind(variant.budget.policy.as_str())
    .bind(int(variant.budget.revision))
    .bind(variant.model.as_str())
    .bind(int(variant.model_version))
    .bind(variant.budget_us)
    .bind(variant.state.as_str())
    .bind(variant.digest.map(|d| d.to_string()))
    .bind(to_json("variants.report", &variant.report)?)
    .bind(&variant.rejection)
    .bind(variant.created_at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("variants.insert"))?;
    Ok(done.rows_affected() == 1)
}

/// A variant.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn find(session: &mut Session, id: &VariantId) -> Result<Option<Variant>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE v.id = $1"))
        .bind(id.as_str())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("variants.find"))?
        .map(Variant::try_from)
        .transpose()
}

/// Variants that are made, belong to the budget that holds, and have no bundle; oldest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn unsealed(session: &mut Session, page: Page) -> Result<Vec<Variant>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "WHERE v.state = 'made'
            AND v.budget_revision = (SELECT MAX(n.revision) FROM budgets n WHERE n.class = v.class AND n.policy = v.policy)
            AND NOT EXISTS (SELECT 1 FROM bundles b WHERE b.variant = v.id)
        ORDER BY v.created_at_ms, v.id
        LIMIT $1"
    ))
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("variants.unsealed"))?
    .into_iter()
    .map(Variant::try_from)
    .collect()
}

/// The newest variants, newest last; of one class, when it is given.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn list(session: &mut Session, class: Option<&ClassId>, page: Page) -> Result<Vec<Variant>, StoreError> {
    let mut rows = sqlx::query_as::<_, Row>(select!("WHERE $1 = '' OR v.class = $1 ORDER BY v.created_at_ms DESC, v.id DESC LIMIT $2"))
        .bind(class.map_or("", ClassId::as_str))
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("variants.list"))?;
    rows.reverse();
    rows.into_iter().map(Variant::try_from).collect()
}
