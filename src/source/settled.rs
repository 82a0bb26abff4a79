//! How far each lane is settled: claims begin there, and read nothing that is dead before it. Where some
//! transaction keeps Postgres from forgetting dead rows, a claim would wade through all that were ever
//! published while it was open.
//!
//! **When a number is closed.** A row below must not turn up later: a transaction that drew 100 and commits
//! after its lane was said to be settled up to 20,000 would be overtaken by its aggregate's next event. An
//! insert takes its lock on the table before it draws its number, and gives it up after its commit can be
//! seen. So: read the last number drawn, *then* who holds such a lock; once all of those are gone, every row
//! up to that number that there will ever be can be seen. A prepared transaction may hold its lock under
//! another name than before (servers older than 14.1), so while there is any, nothing is closed. A long reader
//! holds no such lock.
//!
//! **When a lane is settled up to a number.** The number was closed before the claim; and of the lane's rows
//! up to it the claim took all, and this transaction settled all it took. It says so in the lane's row, and
//! commits it with the rows; whoever locks the lane next begins there.
//!
//! **What would break it, and does not**
//! - A crash takes back numbers that nobody committed. The log of those a lane's row speaks of was written
//!   before that row's own, so what survives agrees; and what was read before is forgotten: it counts only
//!   on a connection to a server process that is older than the reading, since a crash ends them all. Behind
//!   a pooler a transaction on another process is a connection anew.
//! - A sequence that is restarted (`truncate … restart identity`) has another file, one that is set back has
//!   a smaller number: both void what lanes say, at the next claim.
//! - Rows that somebody puts back by hand lie where nobody looks: a seldom look over everything finds them,
//!   says so, and lets their lanes begin anew.
//!
//! **Drawbacks chosen.** A transaction that wrote to the table and stays open holds all of this up, rightly.
//! A lane's row is written anew only when enough was settled, as each version of it is read by every claim
//! while an old transaction is open: with as many as the square root of what was settled, both stay small. A
//! role that may not read the sequence has none of this; docs/performance.md has the grant.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Error;
use super::decode::ClaimedRow;
use super::polling::{Polling, PollingSource};
use super::session::{Session, Writer, answer, may_write_still};
use super::sql::settle_lanes;
use crate::event::Event;
use crate::settle::Verdict;

/// How often the last number is read while rows flow.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How soon it is seen whether those who wrote then are gone; longer each time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Rows that must have been settled before a lane's row is written anew.
const ROWS_MIN: u64 = 64;

/// The last number drawn from a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drawn {
    seq: i64,
    /// The file of the sequence.
    file: i64,
    /// Before it was read.
    at: Instant,
}

/// What this process knows; see the module's description.
#[derive(Debug)]
pub(super) struct Closing {
    look_at: Instant,
    again: Duration,
    /// Who may still bring rows up to this number.
    open: Option<(Drawn, Vec<Writer>)>,
    closed: Option<Drawn>,
    lanes: Vec<Written>,
}

/// What was settled of a lane since its row was written, and before.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    rows: u64,
    before: u64,
}

impl Closing {
    pub(super) fn new(lanes: u16, now: Instant) -> Self {
        Self {
            look_at: now,
            again: LOOK_AGAIN,
            open: None,
            closed: None,
            lanes: vec![Written::default(); usize::from(lanes)],
        }
    }

    /// Whether to look now, which the caller does then.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.look_at;
        if due {
            self.look_at = now + LOOK_PAUSE;
        }
        due
    }

    /// A server process that has been known `since` read `drawn`, and then that `writers` hold locks.
    fn looked(&mut self, drawn: Drawn, writers: Vec<Writer>, since: Instant) {
        let known = |it: &Drawn| it.file == drawn.file && it.seq <= drawn.seq;
        self.closed = self.closed.filter(known);
        // a process that is younger may have come after a crash, which ended its writers unseen
        let open = (self.open.take()).filter(|(it, _)| known(it) && since <= it.at);
        match open {
            Some((it, then)) if may_write_still(&then, &writers) => {
                self.look_at = drawn.at + self.again;
                self.again = (self.again * 2).min(LOOK_PAUSE);
                self.open = Some((it, then));
                return;
            }
            Some((it, _)) => self.closed = Some(it),
            None => {}
        }
        self.again = LOOK_AGAIN;
        if writers.is_empty() {
            self.closed = Some(drawn);
        } else {
            if self.closed.is_none() {
                self.look_at = drawn.at + self.again;
            }
            self.open = Some((drawn, writers));
        }
    }

    /// The last closed number, for whoever has a server process known `since`.
    pub(super) fn closed(&self, since: Instant) -> Option<Drawn> {
        self.closed.filter(|closed| since <= closed.at)
    }

    /// Rows were settled; whether `lane`'s row should say so. It counts as written then.
    fn writes(&mut self, lane: i32, rows: u64) -> bool {
        let Some(written) = usize::try_from(lane)
            .ok()
            .and_then(|lane| self.lanes.get_mut(lane))
        else {
            return false;
        };
        written.rows += rows;
        let writes = written.rows >= written.before.isqrt().max(ROWS_MIN);
        if writes {
            written.before += std::mem::take(&mut written.rows);
        }
        writes
    }
}

/// One lane's part of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    lane: i32,
    /// Its rows among all that were claimed.
    rows: Range<usize>,
    /// How far its row says that it is settled.
    settled: Option<i64>,
    /// The first number of it that was passed over.
    passed: Option<i64>,
}

/// What a claim took of each lane, and what was closed before.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) closed: Drawn,
    parts: Vec<Part>,
}

impl Parts {
    /// Of `rows`, which come lane by lane. `settled` is what the lanes' rows say, `passed` the first
    /// number of each lane that the claim had to pass over.
    pub(super) fn of(
        rows: &[ClaimedRow],
        closed: Drawn,
        settled: impl Fn(i32) -> Option<i64>,
        passed: impl Fn(i32) -> Option<i64>,
    ) -> Self {
        let mut parts: Vec<Part> = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            match parts.last_mut() {
                Some(part) if part.lane == row.lane => part.rows.end = i + 1,
                _ => parts.push(Part {
                    lane: row.lane,
                    rows: i..i + 1,
                    settled: settled(row.lane),
                    passed: passed(row.lane),
                }),
            }
        }
        Self { closed, parts }
    }

    /// How far each lane is settled now, if further than its row says, and how many rows that took.
    fn settled(&self, events: &[Event], verdicts: &[Verdict]) -> Vec<(i32, i64, u64)> {
        let of_part = |part: &Part| {
            let rows = part.rows.clone();
            let stays = |i: &usize| verdicts.get(*i) == Some(&Verdict::Release);
            let first = rows.clone().find(stays);
            let left = first.and_then(|i| Some(events.get(i)?.seq.saturating_sub(1)));
            let last = events.get(rows.end.checked_sub(1)?)?.seq;
            let passed = part.passed.map(|passed| passed.saturating_sub(1));
            let reached = (left.into_iter().chain(passed)).fold(last, i64::min);
            let reached = reached.min(self.closed.seq);
            let rows = u64::try_from(rows.len()).unwrap_or(0);
            (Some(reached) > part.settled).then_some((part.lane, reached, rows))
        };
        self.parts.iter().filter_map(of_part).collect()
    }
}

impl PollingSource {
    /// Looks, if it is time, which numbers are closed: in the transaction that was begun.
    pub(super) async fn look_what_is_closed(&mut self) -> Result<(), Error> {
        let polling = Arc::clone(&self.polling);
        let at = Instant::now();
        let (Some(since), true) = (
            self.session.process_since(),
            polling.memory(|memory| memory.closing.is_due(at)),
        ) else {
            return Ok(());
        };
        let (drawn, lockers) = (&polling.statements.drawn, &polling.statements.lockers);
        let told = self.session.last_and_writers(drawn, lockers).await?;
        let Some(((Some(seq), file), writers)) = told else {
            return Ok(());
        };
        let drawn = Drawn { seq, file, at };
        polling.memory(|memory| memory.closing.looked(drawn, writers, since));
        Ok(())
    }

    /// Ends the transaction that settled `events`, and says in it how far their lanes are settled.
    pub(super) async fn commit_settled(
        &mut self,
        parts: Option<&Parts>,
        events: &[Event],
        verdicts: &[Verdict],
    ) -> Result<(), Error> {
        let Some(parts) = parts else {
            return self.session.end("commit").await;
        };
        let mut settled = parts.settled(events, verdicts);
        self.polling.memory(|memory| {
            settled.retain(|(lane, _, rows)| memory.closing.writes(*lane, *rows));
        });
        if settled.is_empty() {
            return self.session.end("commit").await;
        }
        let lanes: Vec<(i32, i64)> = settled.iter().map(|(lane, seq, _)| (*lane, *seq)).collect();
        let commit = settle_lanes(&self.polling.outbox, &lanes, parts.closed.file);
        self.session.end_by(commit).await
    }
}

/// Finds rows that somebody put back where lanes are settled, on a session of the caller's, and lets those
/// lanes begin anew. Says how many lanes.
pub(super) async fn begin_anew(session: &mut Session, polling: &Polling) -> Result<usize, Error> {
    let limit = session.answer_timeout();
    let connection = session.begin(&polling.statements.open).await?;
    let below =
        sqlx::query_scalar::<_, i32>(polling.statements.below.clone()).fetch_all(connection);
    let lanes = answer(limit, "look for rows that were put back", below).await?;
    if !lanes.is_empty() {
        let anew = sqlx::query(polling.statements.begin_anew.clone())
            .bind(&lanes)
            .execute(session.connection()?);
        answer(limit, "let lanes begin anew", anew).await?;
    }
    session.end("commit").await?;
    if !lanes.is_empty() {
        tracing::warn!(
            outbox = polling.outbox,
            lanes = lanes.len(),
            "rows wait below what was published: somebody put them back, or numbered them by hand. They \
             are published now, behind newer ones of their aggregates"
        );
        polling.woken();
    }
    Ok(lanes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Reason;
    use crate::settle::Policy;

    const SECOND: Duration = Duration::from_secs(1);

    fn drawn(seq: i64, at: Instant) -> Drawn {
        Drawn { seq, file: 1, at }
    }

    fn writers(names: &[&str]) -> Vec<Writer> {
        let writer = |name: &&str| ((*name).to_owned(), name.starts_with('-'));
        names.iter().map(writer).collect()
    }

    #[test]
    fn a_number_is_closed_when_all_who_wrote_are_gone() {
        let start = Instant::now();
        let at = |s: u32| start + SECOND * s;
        let mut closing = Closing::new(1, start);
        closing.looked(drawn(100, at(1)), writers(&["a", "b"]), start);
        assert_eq!(closing.closed(start), None);
        closing.looked(drawn(200, at(2)), writers(&["b", "c"]), start);
        assert_eq!(closing.closed(start), None, "b writes still");
        closing.looked(drawn(300, at(3)), writers(&["c"]), start);
        assert_eq!(closing.closed(start), Some(drawn(100, at(1))));
        closing.looked(drawn(400, at(4)), writers(&["d"]), start);
        assert_eq!(closing.closed(start), Some(drawn(300, at(3))));
        closing.looked(drawn(500, at(5)), writers(&[]), start);
        assert_eq!(
            closing.closed(start),
            Some(drawn(500, at(5))),
            "nobody writes"
        );
    }

    #[test]
    fn a_prepared_transaction_may_be_one_of_those_who_wrote() {
        let start = Instant::now();
        let mut closing = Closing::new(1, start);
        closing.looked(drawn(100, start + SECOND), writers(&["3/7"]), start);
        closing.looked(drawn(200, start + SECOND * 2), writers(&["-1/9"]), start);
        assert_eq!(closing.closed(start), None, "3/7 under its new name");
        closing.looked(drawn(200, start + SECOND * 3), writers(&[]), start);
        assert!(closing.closed(start).is_some());
    }

    #[test]
    fn what_was_read_before_a_crash_is_forgotten() {
        let start = Instant::now();
        let at = |s: u32| start + SECOND * s;
        let mut closing = Closing::new(1, start);
        closing.looked(drawn(100, at(1)), writers(&["a"]), start);
        // the process that asks now is younger than the reading
        closing.looked(drawn(90, at(3)), writers(&["b"]), at(2));
        closing.looked(drawn(120, at(4)), writers(&[]), at(2));
        assert_eq!(closing.closed(at(2)), Some(drawn(120, at(4))));
        assert_eq!(closing.closed(at(5)), None, "nor may a younger one use it");
        closing.looked(
            Drawn {
                file: 2,
                ..drawn(500, at(6))
            },
            writers(&["c"]),
            at(2),
        );
        assert_eq!(closing.closed(at(2)), None, "another sequence");
        closing.looked(drawn(500, at(7)), writers(&[]), at(2));
        closing.looked(drawn(400, at(8)), writers(&["c"]), at(2));
        assert_eq!(closing.closed(at(2)), None, "set back");
    }

    #[test]
    fn a_lanes_row_is_written_when_enough_was_settled() {
        let mut closing = Closing::new(2, Instant::now());
        assert!(!closing.writes(0, ROWS_MIN - 1));
        assert!(closing.writes(0, 1));
        assert!(!closing.writes(1, 1), "each lane by itself");
        let mut written = 0;
        for _ in 0..100_000 {
            written += u32::from(closing.writes(0, 1));
        }
        assert!((200..1_600).contains(&written), "{written}");
        assert!(!closing.writes(7, 1_000), "there is no such lane");
    }

    fn event(seq: i64) -> Event {
        Event {
            seq,
            id: uuid::Uuid::nil(),
            aggregate_type: "".into(),
            aggregate_id: None,
            event_type: "".into(),
            payload: None,
            headers: None,
            topic: None,
            created_at_us: None,
            parked: None,
        }
    }

    fn part(settled: Option<i64>, passed: Option<i64>, rows: Range<usize>) -> Part {
        Part {
            lane: 3,
            rows,
            settled,
            passed,
        }
    }

    #[test]
    fn a_lane_is_settled_up_to_its_first_row_that_stays() {
        use Verdict::{Behind, Done, Release};
        let events: Vec<Event> = [10, 20, 30, 40].map(event).into();
        let park = || Verdict::Park(Reason::new("too_large", "it is"), Policy::Block);
        let settled = |closed, part: Part, verdicts: &[Verdict]| {
            let parts = Parts {
                closed: drawn(closed, Instant::now()),
                parts: vec![part],
            };
            let settled = parts.settled(&events, verdicts);
            settled.first().map(|(_, seq, _)| *seq)
        };
        let all = [Done, Done, park(), Behind];
        assert_eq!(settled(99, part(None, None, 0..4), &all), Some(40));
        assert_eq!(
            settled(35, part(None, None, 0..4), &all),
            Some(35),
            "not closed"
        );
        assert_eq!(
            settled(99, part(None, Some(25), 0..4), &all),
            Some(24),
            "passed over"
        );
        assert_eq!(
            settled(99, part(Some(40), None, 0..4), &all),
            None,
            "no further"
        );
        assert_eq!(
            settled(99, part(None, None, 0..2), &all),
            Some(20),
            "its own rows"
        );
        let some = [Done, Done, Release, Done];
        assert_eq!(settled(99, part(None, None, 0..4), &some), Some(29));
        assert_eq!(
            settled(15, part(Some(18), None, 0..4), &some),
            None,
            "never back"
        );
        let none = [Release, Done, Done, Done];
        assert_eq!(settled(99, part(Some(5), None, 0..4), &none), Some(9));
    }
}
