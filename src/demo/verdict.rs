//! The verdict: what the service did against what the consumer saw. Pure: no clock, no socket.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

/// What the demo found, in events. `--json` prints exactly these fields.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Events whose transaction committed.
    pub written: u64,
    /// Events whose transaction rolled back; none of them may arrive.
    pub rolled_back: u64,
    /// Committed events that arrived, each counted once.
    pub delivered: u64,
    /// Further arrivals of events that had arrived before.
    pub duplicates: u64,
    /// First arrivals that are not the direct successor of what their order had reached. A lost
    /// event leaves a gap, so it shows here too.
    pub order_violations: u64,
    /// Committed events that never arrived.
    pub lost: u64,
    /// Arrivals of something no committed transaction wrote.
    pub phantom: u64,
    /// Half of the events took at most so many milliseconds from commit to consumer; null if
    /// nothing arrived.
    pub p50_ms: Option<f64>,
    /// 99 of 100 events took at most so many milliseconds from commit to consumer.
    pub p99_ms: Option<f64>,
}

impl Verdict {
    /// Whether every promise the demo can see was kept. Duplicates are allowed: at most what was
    /// in flight may repeat when a relay is killed.
    #[must_use]
    pub fn kept(&self) -> bool {
        self.lost == 0 && self.phantom == 0 && self.order_violations == 0
    }
}

/// How the transaction that wrote an event ended. Times count from the start of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has not ended yet.
    Open,
    /// It committed, and the service knew at this time.
    Committed(Duration),
    /// It rolled back.
    RolledBack,
}

/// One event in the service's ledger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// The aggregate.
    pub(super) order: Uuid,
    /// Its place among the events of its order, from 1, with no gap among the committed ones.
    pub(super) version: i64,
    /// How it ended.
    pub(super) fate: Fate,
}

/// Every event the service tried to write, by its id.
pub(super) type Ledger = HashMap<Uuid, Entry>;

/// One record as the consumer got it, in the order of its partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// The header `event_id`; `None` if there was none that reads as a uuid.
    pub(super) event: Option<Uuid>,
    /// When, counted from the start of the demo.
    pub(super) at: Duration,
}

/// Compares the two accounts.
pub(super) fn judge(ledger: &Ledger, arrivals: &[Arrival]) -> Verdict {
    let mut seen = HashSet::new();
    let mut reached: HashMap<Uuid, i64> = HashMap::new();
    let mut lags = Vec::new();
    let (mut duplicates, mut order_violations, mut phantom) = (0, 0, 0);

    for arrival in arrivals {
        let known = arrival
            .event
            .and_then(|id| ledger.get(&id).map(|entry| (id, entry)));
        let Some((id, entry, committed)) = known.and_then(|(id, entry)| match entry.fate {
            Fate::Committed(at) => Some((id, entry, at)),
            Fate::Open | Fate::RolledBack => None,
        }) else {
            phantom += 1;
            continue;
        };
        if !seen.insert(id) {
            duplicates += 1;
            continue;
        }
        // An event may arrive before its writer has heard that the commit succeeded.
        lags.push(arrival.at.saturating_sub(committed));
        let reached = reached.entry(entry.order).or_default();
        if entry.version != *reached + 1 {
            order_violations += 1;
        }
        *reached = entry.version.max(*reached);
    }

    let fates = |wanted: fn(Fate) -> bool| {
        let found = ledger.values().filter(|entry| wanted(entry.fate)).count();
        u64::try_from(found).unwrap_or(u64::MAX)
    };
    let written = fates(|fate| matches!(fate, Fate::Committed(_)));
    let delivered = u64::try_from(seen.len()).unwrap_or(u64::MAX);
    lags.sort_unstable();
    Verdict {
        written,
        rolled_back: fates(|fate| fate == Fate::RolledBack),
        delivered,
        duplicates,
        order_violations,
        lost: written - delivered,
        phantom,
        p50_ms: percentile_ms(&lags, 50),
        p99_ms: percentile_ms(&lags, 99),
    }
}

/// The smallest of the sorted `lags` that `percent` of them do not exceed, in milliseconds with
/// one decimal.
fn percentile_ms(lags: &[Duration], percent: usize) -> Option<f64> {
    let rank = (lags.len() * percent).div_ceil(100);
    let lag = lags.get(rank.checked_sub(1)?)?;
    Some((lag.as_secs_f64() * 10_000.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    /// Two orders with three committed events each (ids 11, 12, 13 and 21, 22, 23), and 14, which
    /// was rolled back. All committed at 100 ms.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new();
        for (order, version) in [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)] {
            let entry = Entry {
                order: id(order),
                version,
                fate: Fate::Committed(ms(100)),
            };
            ledger.insert(id(order * 10 + version.unsigned_abs() as u128), entry);
        }
        let entry = Entry {
            order: id(1),
            version: 4,
            fate: Fate::RolledBack,
        };
        ledger.insert(id(14), entry);
        ledger
    }

    /// The events arrive in this order, the first 1 ms after the commit, the next 2 ms after …
    fn judged(events: &[u128]) -> Verdict {
        let arrivals: Vec<Arrival> = (101..)
            .zip(events)
            .map(|(at, event)| Arrival {
                event: Some(id(*event)),
                at: ms(at),
            })
            .collect();
        judge(&ledger(), &arrivals)
    }

    #[test]
    fn a_clean_run_is_kept() {
        let verdict = judged(&[11, 21, 12, 13, 22, 23]);
        let expected = Verdict {
            written: 6,
            rolled_back: 1,
            delivered: 6,
            duplicates: 0,
            order_violations: 0,
            lost: 0,
            phantom: 0,
            p50_ms: Some(3.0),
            p99_ms: Some(6.0),
        };
        assert_eq!(verdict, expected);
        assert!(verdict.kept());
    }

    #[test]
    fn a_lost_event_is_caught() {
        let last = judged(&[11, 21, 12, 22, 23]);
        assert_eq!((last.lost, last.order_violations), (1, 0));
        assert!(!last.kept());
        let middle = judged(&[11, 21, 13, 22, 23]);
        assert_eq!((middle.lost, middle.order_violations), (1, 1));
        assert!(!middle.kept());
    }

    #[test]
    fn swapped_events_are_caught() {
        let verdict = judged(&[11, 13, 12, 21, 22, 23]);
        assert_eq!((verdict.lost, verdict.order_violations), (0, 2));
        assert!(!verdict.kept());
    }

    #[test]
    fn what_was_rolled_back_or_never_written_is_a_phantom() {
        let verdict = judged(&[11, 12, 13, 14, 21, 22, 23, 99]);
        assert_eq!((verdict.phantom, verdict.delivered), (2, 6));
        assert!(!verdict.kept());
        let nameless = Arrival {
            event: None,
            at: ms(1),
        };
        assert_eq!(judge(&Ledger::new(), &[nameless]).phantom, 1);
    }

    #[test]
    fn duplicates_are_counted_and_allowed() {
        // 11 and 12 once more after 12: what a killed relay leaves to its successor.
        let verdict = judged(&[11, 12, 11, 12, 13, 21, 22, 23]);
        assert_eq!((verdict.duplicates, verdict.order_violations), (2, 0));
        assert_eq!(verdict.delivered, 6);
        assert!(verdict.kept());
    }

    #[test]
    fn an_arrival_before_the_writer_knows_of_its_commit_has_no_lag() {
        let early = Arrival {
            event: Some(id(11)),
            at: ms(99),
        };
        assert_eq!(judge(&ledger(), &[early]).p50_ms, Some(0.0));
        assert_eq!(judge(&ledger(), &[]).p50_ms, None);
    }

    #[test]
    fn the_object_has_exactly_the_promised_fields() {
        assert_eq!(
            serde_json::to_string(&judged(&[11, 21, 12, 13, 22, 23])).unwrap(),
            r#"{"written":6,"rolled_back":1,"delivered":6,"duplicates":0,"order_violations":0,"lost":0,"phantom":0,"p50_ms":3.0,"p99_ms":6.0}"#
        );
    }
}
