//! Taking lanes: beginning a batch's transaction, and locking the rows of lanes in it.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::Error;
use super::lanes::Offer;
use super::polling::PollingSource;
use super::session::Last;
use super::session::answer;
use crate::ops::controls::Paused;

/// What was taken.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) lanes: Vec<i32>,
    /// How far each is settled.
    pub(super) settled: HashMap<i32, i64>,
    /// Those with parked rows somebody decided about.
    pub(super) decided: Vec<i32>,
    /// The last number before they were looked at, if nothing up to it can be missing.
    pub(super) last: Option<Last>,
}

impl PollingSource {
    /// Begins the transaction and locks what it can of the lanes of `offer`. `None`: the outbox is paused.
    pub(super) async fn take_lanes(&mut self, offer: &Offer) -> Result<Option<Taken>, Error> {
        let polling = Arc::clone(&self.polling);
        let limit = self.session.answer_timeout();
        let is_new = !self.session.is_connected();
        let connection = self.session.begin(&polling.statements.open).await?;
        if let (true, Some(question)) = (is_new, polling.identity.get()) {
            let doing = "tell which database it is";
            let same = sqlx::raw_sql(AssertSqlSafe(question.clone())).fetch_one(&mut *connection);
            let same = answer(limit, doing, same).await?.try_get(0);
            if !same.map_err(|error| Error::statement(doing, error))? {
                let outbox = polling.outbox.clone();
                return Err(Error::Copy { outbox });
            }
        }
        let last = self.last_at_rest(offer).await?;
        let lanes = match offer.sweep {
            true => sqlx::query(polling.statements.sweep.clone()).bind(&offer.lanes),
            false => sqlx::query(polling.statements.lanes.clone())
                .bind(&offer.lanes)
                .bind(offer.take_max),
        };
        let lanes = lanes.fetch_all(self.session.connection()?);
        let lanes = answer(limit, "take lanes", lanes).await?;
        let taken = self.read_lanes(&lanes)?;
        Ok(taken.map(|taken| Taken { last, ..taken }))
    }

    /// The lanes that were taken, and those of them with parked rows somebody decided about.
    fn read_lanes(&self, rows: &[PgRow]) -> Result<Option<Taken>, Error> {
        if let Some(row) = rows.first() {
            let topics: Result<Vec<String>, _> = row.try_get(4);
            let topics = topics.map_err(|error| Error::statement("read what is paused", error))?;
            let paused = Paused::of(topics);
            let whole = paused.whole;
            if let Some(controls) = self.polling.controls.get() {
                controls.pause(paused);
            }
            if whole {
                return Ok(None);
            }
        }
        let mut taken = Taken::default();
        for row in rows {
            let doing = "read the lanes";
            let of_lane = || -> Result<(i32, Option<String>, Option<i64>), sqlx::Error> {
                Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(5)?))
            };
            let of_all =
                || -> Result<(bool, i64), sqlx::Error> { Ok((row.try_get(2)?, row.try_get(3)?)) };
            let (lane, routing, settled) =
                of_lane().map_err(|error| Error::statement(doing, error))?;
            let (is_decided, count) = of_all().map_err(|error| Error::statement(doing, error))?;
            if count != i64::from(self.polling.lanes_count) {
                return Err(Error::Lanes {
                    outbox: self.polling.outbox.clone(),
                    ours: self.polling.lanes_count,
                    theirs: count,
                });
            }
            match routing {
                Some(theirs) if theirs != self.polling.routing => {
                    return Err(Error::Routing {
                        outbox: self.polling.outbox.clone(),
                        ours: self.polling.routing.clone(),
                        theirs,
                    });
                }
                _ => taken.lanes.push(lane),
            }
            if let Some(settled) = settled {
                taken.settled.insert(lane, settled);
            }
            if is_decided {
                taken.decided.push(lane);
            }
        }
        Ok(Some(taken))
    }
}
