//! Postgres: the only room with sqlx. Everything else sees events, verdicts and this trait.

use std::collections::HashSet;
use std::future::Future;

use tokio_util::sync::CancellationToken;

use crate::event::Event;
use crate::record::Record;
use crate::route::Waiting;
use crate::settle::Verdict;

mod aggregates;
mod archive;
mod archive_sql;
mod audit;
mod barrier;
mod checkup;
mod checkup_sql;
mod checkup_writers;
mod claiming;
mod created;
mod ddl;
mod dead_letters;
mod decode;
mod emit_sql;
mod error;
mod grants;
mod held;
mod identity;
mod inspect;
mod lanes;
mod layout;
mod left;
mod lookup;
mod migrate;
mod migrate_index;
mod migrations;
pub mod parked;
mod parking;
mod partitions;
mod passing;
mod pauses;
mod polling;
mod quiet;
mod replay;
mod sampling;
mod schema;
mod secured;
mod session;
mod settled;
mod sql;
mod tables;
mod takeover;
mod taking;
mod uninstall;
mod upkeep;
mod wakeup;
mod wire;

#[cfg(any(test, feature = "failpoints"))]
#[doc(hidden)]
pub mod scripted;

pub use aggregates::{AGGREGATES_MAX, AggregateReader, AggregateWaiting, Aggregates, First};
pub use checkup::{Checkup, Counts, Holder, Inspected, Largest, Pooler, Server, Verified};
pub use checkup_writers::{OpenWriter, Partitions, Written};
pub use created::Created;
pub use dead_letters::DeadLetters;
pub use error::{Cause, Error};
pub use identity::{Adopter, Adoption, Identified, Identity, Kept};
pub use inspect::{Inspection, Inspector};
pub(crate) use layout::{literal, placed_columns, quote, quote_if_need_be, quote_table};
pub use left::Left;
pub use lookup::{BEFORE_MAX, Locker, Lookup, OutboxRow, ParkedPlace, Whereabouts};
pub use migrate::{Migrated, Migration};
pub use pauses::{Pause, PauseChange, Pauser};
pub use polling::{Polling, PollingSource};
pub use replay::{Chosen, Marked, Replayer};
pub use sampling::{KindWaiting, ParkedAlike, ROWS_MAX, Sample, Sampler};
pub use secured::{VERIFY, weakness};
pub use tables::{KnownTable, KnownTables, known_tables};
pub use uninstall::{Drops, Installed, Uninstaller};
pub use upkeep::{Tended, Upkeep};
pub use wakeup::listen;

/// The statements that every batch runs, and those about parked rows, by name, as they are rendered for
/// a table of `lanes` lanes; `open` begins the transaction that all others run in. For the tests that explain them.
#[cfg(feature = "failpoints")]
#[doc(hidden)]
#[must_use]
pub fn hot_statements(
    name: &crate::config::TableName,
    layout: &crate::config::Layout,
    on_published: crate::config::OnPublished,
    lanes: u16,
) -> Vec<(&'static str, String)> {
    let table = sql::Table {
        name,
        layout,
        on_published,
        lanes,
        payload_is_bytea: false,
        partitioned: false,
    };
    let timeouts = sql::Timeouts {
        statement_ms: 30_000,
        idle_ms: 30_000,
        tcp_ms: 30_000,
    };
    let all = sql::Statements::render(table, timeouts);
    let sampling = sampling::Sql::render(name, layout, lanes, 30_000);
    let waiting = aggregates::Sql::render(name, layout, lanes, 30_000);
    let named = [
        ("open", all.open),
        ("sweep", all.sweep),
        ("lanes", all.lanes),
        ("claim", all.claim.plain),
        ("claim_all", all.claim_all.plain),
        ("claim_all_filtered", all.claim_all.filtered),
        ("claim_filtered", all.claim.filtered),
        ("count", all.count.plain),
        ("count_filtered", all.count.filtered),
        ("last", all.last),
        ("below", all.below),
        ("passed_filtered", all.passed),
        ("skipped", all.skipped.plain),
        ("parked_keys", all.parked_keys),
        ("fronts", all.fronts),
        ("held", all.held),
        ("sample_heads", sampling.heads),
        ("sample_ends", sampling.ends),
        ("aggregates", waiting.aggregates),
        ("finish", all.finish),
        (
            "by_place",
            sqlx::SqlSafeStr::into_sql_str(partitions::BY_PLACE),
        ),
        ("parked_claim", all.parked_claim),
        ("parked_promote", all.parked_promote),
        ("parked_sweep", all.parked_sweep),
    ];
    named
        .into_iter()
        .map(|(name, sql)| (name, sql.as_str().to_owned()))
        .collect()
}

/// The statement `finish` or `park` of [`hot_statements`] for a partition whose rows have `condition` in common.
/// For the tests that explain it.
#[cfg(feature = "failpoints")]
#[doc(hidden)]
#[must_use]
pub fn of_partition(sql: &str, condition: &str) -> String {
    partitions::of_leaf(sql, condition)
}

/// A record's headers as they are after it was parked, for the tests that compare them.
///
/// # Errors
/// They cannot be read back.
#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub fn through_parking(
    headers: &crate::record::Headers<'_>,
) -> Result<crate::record::Headers<'static>, serde_json::Error> {
    decode::headers_from_json(&decode::headers_to_json(headers))
}

/// Where events come from. A polling publisher implements it; a log tailer can.
pub trait Source: Send {
    /// What the source needs to settle a batch: row places and an open transaction, or a log
    /// position. Nobody else looks inside.
    type Receipt: Send;

    /// Waits for events and claims some: nobody else will publish them until they are settled or
    /// the claim is dropped. [`Next::Stopped`] when `stop` fired first; a claim once begun is not interrupted.
    ///
    /// Rows of what is `waiting` are passed over; it does not last for ever, so while there is any
    /// the wait ends now and then with [`Next::Idle`].
    fn next(
        &mut self,
        waiting: &Waiting,
        stop: &CancellationToken,
    ) -> impl Future<Output = Result<Next<Self::Receipt>, Error>> + Send;

    /// Gives every event of a batch its verdict, in one step that holds as a whole or not at all.
    fn settle(
        &mut self,
        receipt: Self::Receipt,
        judged: &Judged<'_>,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// What [`Source::next`] came back with.
#[derive(Debug)]
pub enum Next<R> {
    /// Events to publish and settle.
    Batch(Batch<R>),
    /// Nothing came for a while, and what waits may have changed: ask the sink, and again.
    Idle,
    /// Nothing is left that can be claimed; only said when the source was told not to wait.
    Empty,
    /// The stop came first.
    Stopped,
}

/// Events this relay holds, in outbox order within each aggregate. Dropping it releases them.
#[derive(Debug)]
#[must_use = "a batch that is not settled is published again"]
pub struct Batch<R> {
    /// The events.
    pub events: Vec<Event>,
    /// Aggregates that wait behind a parked row: none of their events may be published.
    pub held: HashSet<String>,
    /// For [`Source::settle`].
    pub receipt: R,
}

/// A batch's verdicts, and what parking needs to know: one entry per event in each.
#[derive(Debug)]
pub struct Judged<'a> {
    /// The rows.
    pub events: &'a [Event],
    /// What becomes of each row.
    pub verdicts: &'a [Verdict],
    /// The record of each row, where it got that far. A parked row keeps it.
    pub records: &'a [Option<Record<'a>>],
    /// Whether publishing failed for a reason that will pass: the lanes go slower at it.
    pub failed: bool,
}
