//! What an outbox still holds, for the end of a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Error;
use super::polling::PollingSource;
use super::session::answer;

/// What an outbox still holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// Rows that are not published: their topic is paused, somebody has them locked, or they came
    /// just now.
    pub pending: i64,
    /// Parked rows, by their state.
    pub parked: BTreeMap<String, i64>,
}

impl Left {
    /// Whether nothing is left to publish.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.pending == 0 && self.parked.values().all(|rows| *rows == 0)
    }
}

impl PollingSource {
    /// Counts what is left. Reads every pending row, so it is for the end of a run only.
    ///
    /// # Errors
    /// Postgres could not say.
    pub async fn left(&mut self) -> Result<Left, Error> {
        let polling = Arc::clone(&self.polling);
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&polling.statements.open).await?;
        let left = sqlx::query_as::<_, (String, i64)>(polling.statements.left.clone());
        let rows = answer(limit, "count what is left", left.fetch_all(connection)).await?;
        self.session.end("rollback").await?;
        let mut left = Left::default();
        for (state, rows) in rows {
            match state.as_str() {
                "pending" => left.pending = rows,
                _ => _ = left.parked.insert(state, rows),
            }
        }
        Ok(left)
    }
}
