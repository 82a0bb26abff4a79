//! Writing an event: one row, in the transaction of what it tells of. A relay does the rest.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Failure;

/// An event that is to be written.
#[derive(Debug)]
pub(crate) struct Draft {
    aggregate_type: &'static str,
    aggregate_id: Uuid,
    event_type: &'static str,
    payload: String,
}

impl Draft {
    /// An event of the aggregate `id`.
    pub(crate) fn new(
        aggregate_type: &'static str,
        id: Uuid,
        event_type: &'static str,
        payload: &impl Serialize,
    ) -> Result<Self, Failure> {
        Ok(Self {
            aggregate_type,
            aggregate_id: id,
            event_type,
            payload: serde_json::to_string(payload)?,
        })
    }

    /// Writes it. Returns its `seq`: the token by which a reader can wait for it.
    pub(crate) async fn write(&self, transaction: &mut PgConnection) -> Result<i64, Failure> {
        let seq = sqlx::query_scalar(
            "insert into outbox (aggregate_type, aggregate_id, event_type, payload)
             values ($1, $2, $3, $4::text::jsonb)
             returning seq",
        )
        .bind(self.aggregate_type)
        .bind(self.aggregate_id)
        .bind(self.event_type)
        .bind(&self.payload)
        .fetch_one(transaction)
        .await?;
        Ok(seq)
    }
}
