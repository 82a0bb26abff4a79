//! When events were written, for `tail`: how long each took to be published.

use std::collections::HashMap;

use sqlx::Row as _;
use uuid::Uuid;

use super::error::Error;
use super::layout::{Names, names, quote_table};
use super::session::{Session, answer, fixed};
use crate::config::{Config, TableName};

/// Looks up events by their ids.
#[derive(Debug)]
pub struct Created {
    session: Session,
    tables: Vec<(TableName, Names)>,
}

impl Created {
    /// For the tables that `config` names.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            session: Session::new(&config.database)?,
            tables: (config.outboxes.iter())
                .filter(|outbox| outbox.layout.created_at.is_some())
                .map(|outbox| (outbox.table.clone(), names(&outbox.layout, "t.")))
                .collect(),
        })
    }

    /// When each of these was created, in milliseconds since 1970: those that are still in a table.
    /// Plan: index scan by `id`, which the layouts have as primary key; reads only.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn of(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, f64>, Error> {
        let found = self.find(ids).await;
        if found.is_err() {
            self.session.discard();
        }
        found
    }

    async fn find(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, f64>, Error> {
        let doing = "look up when events were written";
        let mut found = HashMap::new();
        if ids.is_empty() {
            return Ok(found);
        }
        let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        let ids = ids.join(",");
        let limit = self.session.answer_timeout();
        for (table, row) in &self.tables {
            let sql = format!(
                "select {id}::text, (extract(epoch from {created_at}) * 1000)::float8
                   from {} t where {id} = any ('{{{ids}}}'::uuid[]) and {created_at} is not null",
                quote_table(table),
                id = row.id,
                created_at = row.created_at,
            );
            let connection = self.session.connect().await?;
            let rows = sqlx::raw_sql(fixed(&sql)).fetch_all(connection);
            for row in answer(limit, doing, rows).await? {
                let read = || -> Result<(String, f64), sqlx::Error> {
                    Ok((row.try_get(0)?, row.try_get(1)?))
                };
                let (id, created_ms) = read().map_err(|error| Error::statement(doing, error))?;
                if let Ok(id) = id.parse() {
                    found.insert(id, created_ms);
                }
            }
        }
        Ok(found)
    }
}
