//! Outbox tables that are partitioned: what of them is not as with one that is whole.
//!
//! **Rows** are read and settled through the table itself, so that the relay's rights on it are enough and
//! a partition that comes, or goes, asks for no grant. Claims are a merge of the partitions' lane indexes, in
//! the order of `seq`, whatever the table is partitioned by.
//!
//! **Settling** knows each row by its partition and its place there. By `tableoid` alone Postgres would look
//! for those places in every partition (30 partitions and 300 rows: 9,300 pages read instead of 600); what a
//! partition's rows have in common, which Postgres tells, lets the planner leave the others out. So the
//! statement is rendered once for each partition, when a worker first settles rows of it. Hash partitions have
//! nothing in common that the planner would use, and of the default one nothing lasts: these cost a look into
//! each partition of their parent.
//!
//! **Who may still bring rows** (see `settled`) holds a lock on the table, or, where an insert names it, on a
//! partition alone.
//!
//! **What would go wrong, and does not.** A partition that was detached and attached again with other bounds
//! does not match what is remembered of it: fewer rows change than were claimed, the batch is given up, and
//! what was remembered with it. Rows that come with an attached partition may have numbers that were settled
//! long ago: the sweep of `settled` finds them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _, SqlStr};

use super::error::Error;
use super::inspect::{Found, Look};
use super::layout::{literal, names, quote_table};
use super::polling::PollingSource;
use super::session::{Session, answer};
use super::upkeep::PURGE_PAUSE;
use crate::config::{Layout, TableName};
use crate::finding::Finding;

/// What settles rows of a partition is planned by their places alone. Its bounds are there to leave the others
/// out; where an index has them, the primary key for instance, the planner may go by that instead, through
/// all of the partition, and keep such a plan for ever if it was made while there was little.
pub(super) const BY_PLACE: &str =
    "set local enable_indexscan = off; set local enable_indexonlyscan = off";
/// And what comes after it by indexes again.
const BY_INDEX: &str = "set local enable_indexscan = on; set local enable_indexonlyscan = on";

/// Pages that one deletion looks through, all partitions together.
const PURGE_PAGES: i64 = 128;
/// Partitions whose statements a worker remembers: those that are gone are never asked for again.
const LEAVES_MAX: usize = 1_000;

/// The oids of `rows` and of all its partitions, however deep, to stand behind `in`. A table that is whole has
/// no partition tree, and is here by itself.
pub(super) fn relations(rows: &str) -> String {
    let table = literal(rows);
    format!(
        "(select {table}::regclass::oid
          union select p.relid::oid from pg_partition_tree({table}::regclass) p)"
    )
}

/// What the rows of the partition `leaf`, as SQL, have in common, and lets a plan leave out the others; null
/// where there is nothing. It is what the nearest of its ancestors has that no hash decides, and no default:
/// those have what the others have not, which changes. Plan: catalogues.
pub(super) fn condition(leaf: &str) -> String {
    format!(
        "(select x.condition
            from (select a.n, pg_get_partition_constraintdef(a.relid) as condition
                    from pg_partition_ancestors({leaf}) with ordinality as a (relid, n)) x
           where x.condition !~ 'satisfies_hash_partition\\(|NOT \\('
           order by x.n limit 1)"
    )
}

/// Asks what the rows of the partition $1 have in common.
pub(super) fn leaf() -> SqlStr {
    let sql = format!("select {}", condition("$1::oid::regclass"));
    AssertSqlSafe(sql).into_sql_str()
}

/// The statement `sql`, which settles rows by their places in the table $1, for a partition whose rows have
/// `condition` in common.
pub(super) fn of_leaf(sql: &str, condition: &str) -> String {
    let mut sql = sql.to_owned();
    for row in ["t", "o"] {
        let known = format!("{row}.tableoid = $1");
        sql = sql.replace(&known, &format!("{known} and {condition}"));
    }
    sql
}

/// The statements that settle rows of one partition.
#[derive(Debug, Clone)]
pub(super) struct Settling {
    pub(super) finish: SqlStr,
    pub(super) park: SqlStr,
}

/// What a worker remembers of partitions, by their oids.
pub(super) type Leaves = HashMap<u32, Settling>;

impl PollingSource {
    /// Where the outbox is partitioned: the rest of the transaction is planned by places, or not any more. One
    /// round trip more a batch.
    pub(super) async fn plan_by_place(&mut self, by_place: bool) -> Result<(), Error> {
        if self.polling.statements.leaf.is_none() {
            return Ok(());
        }
        let limit = self.session.answer_timeout();
        let set = sqlx::raw_sql(if by_place { BY_PLACE } else { BY_INDEX });
        let set = set.execute(self.session.connection()?);
        answer(limit, "set how rows are found", set).await.map(drop)
    }

    /// The statements that settle rows of `table`, a partition or the outbox itself.
    pub(super) async fn settling(&mut self, table: u32) -> Result<Settling, Error> {
        let polling = Arc::clone(&self.polling);
        let whole = Settling {
            finish: polling.statements.finish.clone(),
            park: polling.statements.park.clone(),
        };
        let Some(leaf) = &polling.statements.leaf else {
            return Ok(whole);
        };
        if let Some(known) = self.leaves.get(&table) {
            return Ok(known.clone());
        }
        let limit = self.session.answer_timeout();
        let condition = sqlx::query_scalar::<_, Option<String>>(leaf.clone())
            .bind(Oid(table))
            .fetch_one(self.session.connection()?);
        let settling = match answer(limit, "ask for a partition's bounds", condition).await? {
            None => whole,
            Some(condition) => {
                let of_it =
                    |sql: &SqlStr| AssertSqlSafe(of_leaf(sql.as_str(), &condition)).into_sql_str();
                Settling {
                    finish: of_it(&whole.finish),
                    park: of_it(&whole.park),
                }
            }
        };
        if self.leaves.len() >= LEAVES_MAX {
            self.leaves.clear();
        }
        self.leaves.insert(table, settling.clone());
        Ok(settling)
    }
}

impl Look<'_> {
    /// Whether `table`, whose kind the catalogue calls `kind`, can be served: what is wrong with it goes to
    /// the problems.
    pub(super) async fn servable(&mut self, oid: Oid, kind: &str) -> Result<Found, Error> {
        let name = &self.outbox.table;
        let doing = "look at the table's partitions";
        if !matches!(kind, "r" | "p") {
            self.wrong.push(Finding::words(format!(
                "{name} is no table: views and foreign tables cannot be served"
            )));
        }
        let sql = format!(
            "select case
                    when c.relispartition then
                      'is a partition of ' || (select i.inhparent::regclass::text from pg_catalog.pg_inherits i
                                                where i.inhrelid = c.oid limit 1)
                      || ': an insert into that draws its number before it locks this. Name that one in the config'
                    when c.relkind = 'r' and exists (select from pg_catalog.pg_inherits where inhparent = c.oid) then
                      'has tables that inherit from it: such tables cannot be served, but partitioned ones can'
                    when exists (select from pg_partition_tree(c.oid::regclass) p
                                   join pg_catalog.pg_class l on l.oid = p.relid and l.relkind = 'f') then
                      'has partitions that are foreign tables: no row there can be claimed'
                    end
               from pg_catalog.pg_class c where c.oid = {}",
            oid.0
        );
        let rows = self.rows(doing, sql).await?;
        let wrong = rows
            .first()
            .and_then(|row| row.try_get::<Option<String>, _>(0).ok()?);
        if let Some(wrong) = wrong {
            let name = &self.outbox.table;
            self.wrong.push(Finding::words(format!("{name} {wrong}")));
        }
        Ok(Found {
            oid,
            partitioned: kind == "p",
        })
    }
}

/// A partition, as deletions go through it.
struct Part {
    pages: i64,
    condition: Option<String>,
}

/// Deletes the rows of a partitioned table that were marked long enough ago.
#[derive(Debug, Clone)]
pub(super) struct Purge {
    rows: String,
    published_at: [String; 2],
    parts: SqlStr,
}

impl Purge {
    /// Of `table`, which is partitioned.
    pub(super) fn of(table: &TableName, layout: &Layout) -> Self {
        let rows = quote_table(table);
        let parts = format!(
            "select pg_relation_size(p.relid) / current_setting('block_size')::int8, {}
               from pg_partition_tree({}::regclass) p where p.isleaf",
            condition("p.relid"),
            literal(&rows),
        );
        Self {
            published_at: ["o.", "t."].map(|row| names(layout, row).published_at),
            rows,
            parts: AssertSqlSafe(parts).into_sql_str(),
        }
    }

    /// Deletes the rows marked longer than $1 seconds ago that are on the pages from $2 to before $3; says
    /// how many. Plan: a tid range scan of each partition that has `condition`, twice, the second time joined
    /// with what was locked. Passes over what somebody has locked.
    fn sql(&self, condition: &str) -> SqlStr {
        let Self {
            rows,
            published_at: [published_at, still],
            ..
        } = self;
        let sql = format!(
            "with old as (
               select o.tableoid as outbox_relay_leaf, o.ctid as outbox_relay_place from {rows} o
                where {condition} and o.ctid >= $2::text::tid and o.ctid < $3::text::tid
                  and {published_at} < clock_timestamp() - make_interval(secs => $1)
                  for update skip locked),
             gone as (
               delete from {rows} t using old
                where {condition} and t.ctid >= $2::text::tid and t.ctid < $3::text::tid
                  and t.tableoid = old.outbox_relay_leaf and t.ctid = old.outbox_relay_place
                  and {still} is not null
               returning 1)
             select count(*) from gone"
        );
        AssertSqlSafe(sql).into_sql_str()
    }

    /// Deletes what was marked longer than `kept` ago, some pages at a time, each in a transaction of its
    /// own that `open` begins; adds to `purged`. `step` is told of each.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused; what was deleted by then stays deleted.
    pub(super) async fn run(
        &self,
        session: &mut Session,
        open: &SqlStr,
        kept: Duration,
        purged: &mut i64,
        step: impl Fn(),
    ) -> Result<(), Error> {
        const DOING: &str = "purge marked rows";
        let limit = session.answer_timeout();
        let connection = session.begin(open).await?;
        let parts = sqlx::query_as::<_, (i64, Option<String>)>(self.parts.clone());
        let parts = answer(limit, DOING, parts.fetch_all(connection)).await?;
        session.end("commit").await?;
        let all = i64::try_from(parts.len()).unwrap_or(i64::MAX).max(1);
        let (bounded, unbounded): (Vec<Part>, Vec<Part>) = (parts.into_iter())
            .map(|(pages, condition)| Part { pages, condition })
            .partition(|part| part.condition.is_some());
        // those that no plan can tell apart are gone through side by side
        let together = Part {
            pages: unbounded.iter().map(|part| part.pages).max().unwrap_or(0),
            condition: None,
        };
        for part in bounded.iter().chain([&together]) {
            let (condition, pages) = match &part.condition {
                Some(condition) => (condition.as_str(), PURGE_PAGES),
                None => ("true", (PURGE_PAGES / all).max(1)),
            };
            let sql = self.sql(condition);
            let mut from = 0;
            while from < part.pages {
                step();
                let connection = session.begin(open).await?;
                let purge = sqlx::query_scalar::<_, i64>(sql.clone())
                    .bind(kept.as_secs_f64())
                    .bind(format!("({from},0)"))
                    .bind(format!("({},0)", from + pages))
                    .fetch_one(connection);
                let rows = answer(limit, DOING, purge).await?;
                session.end("commit").await?;
                *purged += rows;
                from += pages;
                if rows > 0 {
                    tokio::time::sleep(PURGE_PAUSE).await;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_told_what_a_partitions_rows_have_in_common() {
        let of = |sql: &str| of_leaf(sql, "(day = 1)");
        assert_eq!(
            of("delete from x t where t.tableoid = $1 and t.ctid = any ($2)"),
            "delete from x t where t.tableoid = $1 and (day = 1) and t.ctid = any ($2)"
        );
        assert_eq!(
            of("delete from x o where o.tableoid = $1"),
            "delete from x o where o.tableoid = $1 and (day = 1)"
        );
    }
}
