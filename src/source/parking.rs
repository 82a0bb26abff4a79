//! Settling the rows of the outbox, and the parked ones: rows that cannot be published are moved to
//! `outbox_relay.parked`, and come from there when somebody has decided about them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::time::Instant;

use super::claiming::Statement;
use super::decode::{self, ParkedRow, Place, Places};
use super::polling::PollingSource;
use super::session::answer;
use super::{Error, Judged};
use crate::event::Event;
use crate::ops::{Mistake, makes};
use crate::outcome::Reason;
use crate::record::Record;
use crate::route::Waiting;
use crate::settle::{Policy, Verdict};

/// How long parked rows are left alone after an attempt that did not get them all out.
pub(super) const PARKED_PAUSE: Duration = Duration::from_secs(1);
/// Most parked rows in one batch.
const PARKED_ROWS_MAX: i64 = 100;

/// What became of a look at the parked rows.
#[derive(Debug)]
pub(super) enum Parked {
    /// Nothing to publish: go on with the outbox, in the same transaction.
    None,
    /// Something was settled, and the transaction is over.
    Settled,
    /// Rows to publish, and the parked row of each with its aggregate.
    Claimed(Vec<Event>, Vec<(i64, String)>),
}

/// Rows to park, column by column.
#[derive(Debug, Default)]
pub(super) struct Parking<'a> {
    pub(super) places: Vec<String>,
    pub(super) states: Vec<&'static str>,
    pub(super) classes: Vec<Option<&'static str>>,
    pub(super) reasons: Vec<Option<&'a str>>,
    pub(super) topics: Vec<Option<&'a str>>,
    pub(super) headers: Vec<Option<String>>,
    /// Whether key and value of the record are not the row's, and what they are then.
    pub(super) differ: Vec<bool>,
    pub(super) keys: Vec<Option<&'a [u8]>>,
    pub(super) values: Vec<Option<&'a [u8]>>,
}

impl<'a> Parking<'a> {
    pub(super) fn push(
        &mut self,
        place: String,
        state: &'static str,
        reason: Option<&'a Reason>,
        event: &Event,
        record: Option<&'a Record<'_>>,
    ) {
        self.places.push(place);
        self.states.push(state);
        self.classes.push(reason.map(|reason| reason.class));
        self.reasons.push(reason.map(|reason| reason.text.as_str()));
        self.topics.push(record.map(|record| &*record.topic));
        self.headers
            .push(record.map(|record| decode::headers_to_json(&record.headers)));
        let differs = |record: &&Record<'_>| {
            *record.key != *event.key().as_bytes()
                || record.value.as_deref() != event.payload.as_deref()
        };
        let own = record.filter(differs);
        self.differ.push(own.is_some());
        self.keys.push(own.map(|record| &*record.key));
        self.values
            .push(own.and_then(|record| record.value.as_deref()));
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement
            .bind(&self.places)
            .bind(&self.states)
            .bind(&self.classes)
            .bind(&self.reasons)
            .bind(&self.topics)
            .bind(&self.headers)
            .bind(&self.differ)
            .bind(&self.keys)
            .bind(&self.values)
    }
}

pub(super) fn parked_state(policy: Policy) -> &'static str {
    match policy {
        Policy::Block => "blocked",
        Policy::DeadLetter => "dead",
    }
}

impl PollingSource {
    /// Parked rows to publish again, of the lanes `lanes`. Gives up at once what is to be skipped.
    pub(super) async fn claim_parked(
        &mut self,
        lanes: &[i32],
        waiting: &Waiting,
    ) -> Result<Parked, Error> {
        let polling = Arc::clone(&self.polling);
        let now = Instant::now();
        if polling.memory(|memory| memory.parked_after > now) {
            return Ok(Parked::None);
        }
        let limit = self.session.answer_timeout();
        let topics: Vec<&String> = waiting.topics.iter().collect();
        let claim = sqlx::query(polling.statements.parked_claim.clone())
            .bind(lanes)
            .bind(PARKED_ROWS_MAX)
            .bind(topics);
        let bytes_max = self.claim_bytes_max;
        let mut parked = Vec::new();
        let mut bytes = 0;
        let mut rows = claim.fetch(self.session.connection()?);
        loop {
            match answer(limit, "claim parked rows", rows.try_next()).await {
                Ok(None) => break,
                Ok(Some(row)) => {
                    let row = decode::parked(&row, &polling.outbox)?;
                    bytes += row.event.size_bytes();
                    // (only what fits, but never nothing; the rest comes next)
                    if parked.is_empty() || bytes <= bytes_max {
                        parked.push(row);
                    }
                }
                // somebody is at a parked row; the outbox goes on meanwhile
                Err(error) if error.met_a_lock() => {
                    drop(rows);
                    self.session.end("rollback").await?;
                    polling.memory(|memory| memory.parked_after = now + PARKED_PAUSE);
                    return Ok(Parked::Settled);
                }
                Err(error) => return Err(error),
            }
        }
        drop(rows);
        let skipped: Vec<ParkedRow> = parked.extract_if(.., |row| row.skip).collect();
        if !skipped.is_empty() {
            // first what is given up, by itself; what stood behind it comes with the next claim
            self.give_up(&skipped).await?;
            return Ok(Parked::Settled);
        }
        if parked.is_empty() {
            polling.memory(|memory| memory.parked_after = now + PARKED_PAUSE);
            return Ok(Parked::None);
        }
        // oldest first, whatever aggregate it came with
        parked.sort_by_key(|row| (row.event.seq, row.id));
        let rows = parked
            .iter()
            .map(|row| (row.id, row.event.key().to_owned()))
            .collect();
        Ok(Parked::Claimed(
            parked.into_iter().map(|row| row.event).collect(),
            rows,
        ))
    }

    /// Gives parked rows up that somebody decided to skip. They stay, as what they are: a gap.
    pub(super) async fn give_up(&mut self, skipped: &[ParkedRow]) -> Result<(), Error> {
        let keys: Vec<&str> = skipped.iter().map(|row| row.event.key()).collect();
        let done: Vec<_> = skipped
            .iter()
            .map(|row| (row.id, "skipped", None))
            .collect();
        self.settle_parked(&done, &keys).await?;
        self.session.end("commit").await?;
        for row in skipped {
            tracing::warn!(
                outbox = self.polling.outbox,
                seq = row.event.seq,
                event_id = %row.event.id,
                "a parked row was given up, as somebody decided; its aggregate goes on"
            );
        }
        Ok(())
    }

    pub(super) async fn settle_outbox(
        &mut self,
        places: &[Place],
        judged: &Judged<'_>,
    ) -> Result<(), Error> {
        let limit = self.session.answer_timeout();
        let mut tables: HashMap<u32, (Places, Parking<'_>)> = HashMap::new();
        let rows = judged.events.iter().zip(judged.records);
        for ((place, verdict), (event, record)) in places.iter().zip(judged.verdicts).zip(rows) {
            let (done, parking) = tables.entry(place.table).or_default();
            match verdict {
                Verdict::Done => done.push(*place),
                Verdict::Park(reason, policy) => {
                    let state = parked_state(*policy);
                    parking.push(place.tid(), state, Some(reason), event, record.as_ref());
                }
                Verdict::Behind => {
                    parking.push(place.tid(), "behind", None, event, record.as_ref());
                }
                Verdict::Release => {}
            }
        }
        let behind = |(event, verdict): (&'_ Event, &Verdict)| {
            (*verdict == Verdict::Behind).then(|| event.key().to_owned())
        };
        let behind: HashSet<String> = judged
            .events
            .iter()
            .zip(judged.verdicts)
            .filter_map(behind)
            .collect();
        self.plan_by_place(true).await?;
        for (table, (done, parking)) in tables {
            let settling = self.settling(table).await?;
            let table = sqlx::postgres::types::Oid(table);
            let expected = usize::try_from(done.count()).unwrap_or(usize::MAX);
            if expected > 0 {
                let finish = sqlx::query(settling.finish)
                    .bind(table)
                    .bind(done)
                    .execute(self.session.connection()?);
                let finished = answer(limit, "mark, delete or move published rows", finish).await?;
                self.all_changed(expected, finished.rows_affected())?;
            }
            if !parking.places.is_empty() {
                let expected = parking.places.len();
                let park = parking
                    .bind(sqlx::query(settling.park).bind(table))
                    .execute(self.session.connection()?);
                let parked = answer(limit, "park rows", park).await?;
                self.all_changed(expected, parked.rows_affected())?;
            }
        }
        if !behind.is_empty() {
            self.plan_by_place(false).await?;
            // a row that was released before may now stand in front of the one it waits behind
            let behind: Vec<&str> = behind.iter().map(String::as_str).collect();
            self.promote(&behind).await?;
        }
        Ok(())
    }

    pub(super) fn all_changed(&self, expected: usize, changed: u64) -> Result<(), Error> {
        if u64::try_from(expected).is_ok_and(|expected| expected == changed)
            || makes(Mistake::SettleByRange)
        {
            return Ok(());
        }
        Err(Error::Unsettled {
            outbox: self.polling.outbox.clone(),
            expected,
            changed,
        })
    }

    /// Gives parked rows their state, and lets what waits behind them come next.
    pub(super) async fn settle_parked(
        &mut self,
        settled: &[(i64, &'static str, Option<&Reason>)],
        keys: &[&str],
    ) -> Result<(), Error> {
        let polling = Arc::clone(&self.polling);
        let limit = self.session.answer_timeout();
        let done = settled.iter().filter(|(_, state, _)| *state == "done");
        let done: Vec<i64> = done.map(|(id, ..)| *id).collect();
        if let (Some(archive), false) = (&polling.statements.archive_parked, done.is_empty()) {
            let archived = sqlx::query_scalar::<_, i64>(archive.clone())
                .bind(&done)
                .fetch_one(self.session.connection()?);
            let archived = answer(limit, "move parked rows to the history", archived).await?;
            self.all_changed(done.len(), u64::try_from(archived).unwrap_or(0))?;
        }
        let settle = sqlx::query(polling.statements.parked_settle.clone())
            .bind(settled.iter().map(|(id, ..)| *id).collect::<Vec<_>>())
            .bind(
                settled
                    .iter()
                    .map(|(_, state, _)| *state)
                    .collect::<Vec<_>>(),
            )
            .bind(
                settled
                    .iter()
                    .map(|(.., r)| r.map(|r| r.class))
                    .collect::<Vec<_>>(),
            )
            .bind(
                settled
                    .iter()
                    .map(|(.., r)| r.map(|r| r.text.as_str()))
                    .collect::<Vec<_>>(),
            )
            .execute(self.session.connection()?);
        answer(limit, "settle parked rows", settle).await?;
        self.promote(keys).await
    }

    /// Lets the first parked row of each of the aggregates `keys` come next, if it only waited.
    pub(super) async fn promote(&mut self, keys: &[&str]) -> Result<(), Error> {
        let limit = self.session.answer_timeout();
        let promote = sqlx::query(self.polling.statements.parked_promote.clone())
            .bind(keys)
            .execute(self.session.connection()?);
        answer(limit, "let the rows behind a parked one go on", promote).await?;
        Ok(())
    }
}
