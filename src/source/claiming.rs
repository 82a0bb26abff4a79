//! Claiming rows of lanes that are locked: as they stream in, without those that come after a row
//! somebody else has locked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, TryStreamExt as _};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};
use tokio::time::Instant;

use super::Error;
use super::decode::{self, ClaimedRow};
use super::lanes::Claimed;
use super::polling::PollingSource;
use super::session::answer;
use super::sql::Filtered;
use crate::event::Event;
use crate::route::{Kind, Waiting};

/// How long an aggregate with a row that somebody else has locked is passed over before the relay
/// looks again.
const LOCKED_PAUSE: Duration = Duration::from_millis(500);

/// Rows as the claim brought them.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// What fits the byte limit, lane by lane, in `seq` order; and the event of each.
    pub(super) rows: Vec<ClaimedRow>,
    pub(super) events: Vec<Event>,
    pub(super) bytes: usize,
    /// Rows each lane sent.
    pub(super) came: HashMap<i32, i32>,
    /// Whether the byte limit was reached, and the lanes that lost rows by it.
    pub(super) cut: bool,
    pub(super) left: HashSet<i32>,
}

impl Rows {
    /// Keeps the rows for which `keeps`.
    pub(super) fn retain(&mut self, keeps: impl Fn(&ClaimedRow, &Event) -> bool) {
        let pairs = std::mem::take(&mut self.rows).into_iter();
        let pairs = pairs.zip(std::mem::take(&mut self.events));
        (self.rows, self.events) = pairs.filter(|(row, event)| keeps(row, event)).unzip();
    }

    pub(super) fn came(&self, lanes: &[i32], asked: &[i32]) -> Vec<Claimed> {
        let claimed = |(&lane, &asked): (&i32, &i32)| {
            // a lane that lost rows to the byte limit has more, so it counts as full
            let came = if self.left.contains(&lane) {
                asked
            } else {
                self.came.get(&lane).copied().unwrap_or(0)
            };
            Claimed { lane, asked, came }
        };
        lanes.iter().zip(asked).map(claimed).collect()
    }
}

/// What a claim passes over.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub(super) keys: Vec<String>,
    pub(super) aggregate_types: Vec<String>,
    pub(super) event_types: Vec<String>,
    pub(super) topics: Vec<String>,
    /// The last row of each lane that need not be looked at.
    places: Vec<i64>,
}

impl Filter {
    pub(super) fn choose<'q>(filter: Option<&Self>, of: &Filtered) -> Statement<'q> {
        sqlx::query(if filter.is_some() {
            of.filtered.clone()
        } else {
            of.plain.clone()
        })
    }

    /// Behind which row the claim of `lane` begins: it is settled so far, or all up to there is passed.
    pub(super) fn place(filter: Option<&Self>, lane: i32, settled: Option<i64>) -> i64 {
        let passed = filter.zip(usize::try_from(lane).ok());
        let passed = passed.and_then(|(filter, lane)| filter.places.get(lane).copied());
        passed.max(settled).unwrap_or(i64::MIN)
    }

    pub(super) fn bind<'q>(filter: Option<&'q Self>, statement: Statement<'q>) -> Statement<'q> {
        let Some(Self {
            keys,
            aggregate_types,
            event_types,
            topics,
            places: _,
        }) = filter
        else {
            return statement;
        };
        statement
            .bind(keys)
            .bind(aggregate_types)
            .bind(event_types)
            .bind(topics)
    }
}

/// Kinds as the statements take them: aggregate types, event types, own topics.
pub(super) fn columns(kinds: &HashSet<Kind>) -> [Vec<String>; 3] {
    let mut columns = [(); 3].map(|()| Vec::with_capacity(kinds.len()));
    for kind in kinds {
        columns[0].push(kind.aggregate_type.clone());
        columns[1].push(kind.event_type.clone());
        columns[2].push(kind.topic.clone().unwrap_or_default());
    }
    columns
}

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

impl PollingSource {
    /// What to pass over, if anything.
    pub(super) fn filter(&self, waiting: &Waiting) -> Option<Filter> {
        let now = Instant::now();
        let keys: Vec<String> = self.polling.memory(|memory| {
            memory.locked.retain(|_, until| *until > now);
            let locked = memory.locked.keys();
            locked.chain(&waiting.keys).cloned().collect()
        });
        if keys.is_empty() && waiting.kinds.is_empty() {
            return None;
        }
        let mut filter = Filter {
            keys,
            places: self.polling.memory(|memory| memory.passing.places(waiting)),
            ..Filter::default()
        };
        [filter.aggregate_types, filter.event_types, filter.topics] = columns(&waiting.kinds);
        Some(filter)
    }

    /// Reads the claim as it streams in and keeps what fits the byte limit, but never nothing. The
    /// rest is read and forgotten: it stays locked until the transaction ends, and is claimed anew.
    /// Unless `careful`, it fails on a row that somebody else has locked.
    pub(super) async fn claim_rows(
        &mut self,
        lanes: &[i32],
        asked: &[i32],
        places: &[i64],
        filter: Option<&Filter>,
        careful: bool,
    ) -> Result<Rows, Error> {
        let polling = Arc::clone(&self.polling);
        let limit = self.session.answer_timeout();
        let bytes_max = self.claim_bytes_max;
        let of = match careful {
            true => &polling.statements.claim,
            false => &polling.statements.claim_all,
        };
        let claim = Filter::choose(filter, of);
        let claim = claim.bind(lanes).bind(asked).bind(places);
        let claim = Filter::bind(filter, claim);
        let mut stream = claim.fetch(self.session.connection()?);
        let mut rows = Rows {
            events: Vec::with_capacity(self.rows_before),
            ..Rows::default()
        };
        let mut buffer = decode::Buffer::default();
        // most rows are here already, and to wait costs each of them two looks at the clock
        while let Some(row) = match stream.try_next().now_or_never() {
            Some(read) => read.map_err(|error| Error::statement("claim rows", error))?,
            None => answer(limit, "claim rows", stream.try_next()).await?,
        } {
            let (row, event) = decode::claimed(&row, &mut buffer, &polling.outbox)?;
            *rows.came.entry(row.lane).or_default() += 1;
            let size = event.size_bytes();
            if rows.rows.is_empty() || (!rows.cut && rows.bytes + size <= bytes_max) {
                rows.bytes += size;
                rows.rows.push(row);
                rows.events.push(event);
            } else {
                rows.cut = true;
                rows.left.insert(row.lane);
            }
        }
        self.rows_before = rows.rows.len();
        Ok(rows)
    }

    /// Puts aside the rows that come after one which somebody else has locked, of its aggregate. Says the
    /// first of those of each lane. `place_of`: behind which row the claim of a lane began.
    pub(super) async fn put_locked_aside(
        &mut self,
        rows: &mut Rows,
        place_of: impl Fn(i32) -> i64,
        filter: Option<&Filter>,
    ) -> Result<HashMap<i32, i64>, Error> {
        let polling = Arc::clone(&self.polling);
        let limit = self.session.answer_timeout();
        let mut claimed: HashMap<i32, Vec<i64>> = HashMap::new();
        for (row, event) in rows.rows.iter().zip(&rows.events) {
            claimed.entry(row.lane).or_default().push(event.seq);
        }
        let (mut lanes, mut last) = (Vec::new(), Vec::new());
        for (lane, seqs) in &claimed {
            lanes.push(*lane);
            last.push(seqs.iter().copied().max().unwrap_or(i64::MIN));
        }
        let mut passed = HashMap::new();
        if lanes.is_empty() {
            return Ok(passed);
        }
        let places: Vec<i64> = lanes.iter().map(|lane| place_of(*lane)).collect();
        let count = Filter::choose(filter, &polling.statements.count)
            .bind(&lanes)
            .bind(&last)
            .bind(&places);
        let count = Filter::bind(filter, count);
        let count = count.fetch_all(self.session.connection()?);
        let counts = answer(limit, "count what was claimed", count).await?;
        for row in &counts {
            let read =
                || -> Result<(i32, i64), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
            let (lane, pending) =
                read().map_err(|error| Error::statement("read a count", error))?;
            let Some(seqs) = claimed.get(&lane) else {
                continue;
            };
            if pending <= i64::try_from(seqs.len()).unwrap_or(i64::MAX) {
                continue;
            }
            let skipped = Filter::choose(filter, &polling.statements.skipped)
                .bind(lane)
                .bind(seqs.iter().copied().max().unwrap_or(i64::MIN))
                .bind(place_of(lane));
            let skipped = Filter::bind(filter, skipped).bind(seqs);
            let skipped = skipped.fetch_all(self.session.connection()?);
            let skipped = answer(limit, "find the rows somebody else has locked", skipped).await?;
            let read = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
            let skipped: Result<Vec<(i64, String)>, sqlx::Error> =
                skipped.iter().map(read).collect();
            let skipped =
                skipped.map_err(|error| Error::statement("read the rows passed over", error))?;
            // one that was committed since the claim may be among them: it is claimed the next time
            if let Some(seq) = skipped.iter().map(|(seq, _)| *seq).min() {
                passed.insert(lane, seq);
            }
            let mut first: HashMap<String, i64> = HashMap::new();
            for (seq, key) in skipped {
                let at = first.entry(key).or_insert(seq);
                *at = seq.min(*at);
            }
            rows.retain(|row, event| {
                row.lane != lane || first.get(event.key()).is_none_or(|seq| event.seq < *seq)
            });
            let until = Instant::now() + LOCKED_PAUSE;
            polling.memory(|memory| {
                memory
                    .locked
                    .extend(first.into_keys().map(|key| (key, until)));
            });
        }
        Ok(passed)
    }
}
