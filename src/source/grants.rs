//! What the relay's role may do, and what it must be able to.

use sqlx::Row as _;

use super::error::Error;
use super::inspect::Look;
use super::layout::{literal, quote, quote_table};
use crate::finding::Finding;

impl Look<'_> {
    /// Which grants are missing, as the statements that give them; first, whether the history is there.
    pub(super) async fn grants(&mut self) -> Result<(), Error> {
        self.history().await?;
        if !self.wrong.is_empty() {
            return Ok(());
        }
        let table = quote_table(&self.outbox.table);
        let schema = quote(&self.outbox.table.schema);
        let (t, s) = (literal(&table), literal(&self.outbox.table.schema));
        let checks = [
            (
                format!("has_schema_privilege({s}, 'usage')"),
                format!("usage on schema {schema}"),
            ),
            (
                format!("has_table_privilege({t}, 'select')"),
                format!("select on {table}"),
            ),
            (
                // locking a row takes the right to update some column of it
                format!(
                    "(has_column_privilege({t}, 'published_at', 'update')
                      or has_table_privilege({t}, 'update'))"
                ),
                format!("update (published_at) on {table}"),
            ),
            // parking moves rows, whatever becomes of published ones
            (
                format!("has_table_privilege({t}, 'delete')"),
                format!("delete on {table}"),
            ),
            (
                "has_schema_privilege('outbox_relay', 'usage')".into(),
                "usage on schema outbox_relay".into(),
            ),
        ];
        let own = [
            ("outbox", "select, update"),
            ("lane", "select, update"),
            ("parked", "select, insert, update, delete"),
            ("pause", "select"),
        ];
        let mut missing = Vec::new();
        for (check, grant) in checks {
            if !self
                .truth("check the grants", format!("select {check}"))
                .await?
            {
                missing.push(grant);
            }
        }
        if missing
            .iter()
            .all(|grant| grant != "usage on schema outbox_relay")
        {
            for (name, rights) in own {
                let every: Vec<String> = rights
                    .split(", ")
                    .map(|right| format!("has_table_privilege('outbox_relay.{name}', '{right}')"))
                    .collect();
                let check = format!("select {}", every.join(" and "));
                if !self.truth("check the grants", check).await? {
                    missing.push(format!("{rights} on outbox_relay.{name}"));
                }
            }
            missing.extend(self.history_grants().await?);
        }
        if missing.is_empty() {
            return Ok(());
        }
        let me = self
            .rows(
                "ask who the relay is",
                "select current_user::text".to_owned(),
            )
            .await?;
        let me = me
            .first()
            .and_then(|row| row.try_get::<String, _>(0).ok())
            .unwrap_or_default();
        let me = quote(&me);
        for grant in missing {
            let sql = format!("grant {grant} to {me};");
            self.wrong.push(Finding::sql("a grant is missing", sql));
        }
        Ok(())
    }
}
