//! The two accounts the verdict compares, kept while the demo runs: the service's ledger and the
//! consumer's arrivals.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::verdict::{Arrival, Entry, Fate, Ledger, Verdict, judge};

/// Shared by the writers, the consumer and whoever waits for them.
pub(super) struct Books {
    started: Instant,
    accounts: Mutex<Accounts>,
    /// Told at each commit: the moment at which killing a relay hurts most.
    pub(super) committed: Notify,
}

#[derive(Default)]
struct Accounts {
    ledger: Ledger,
    arrivals: Vec<Arrival>,
    seen: HashSet<Uuid>,
    /// Committed events that have not arrived yet.
    missing: usize,
}

/// What the consumer's line says of an arrival beyond the record itself.
pub(super) struct Noted {
    /// From just after the commit to the arrival; zero if the writer has not heard of it yet.
    pub(super) lag: Duration,
    /// It had arrived before.
    pub(super) duplicate: bool,
}

impl Books {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            accounts: Mutex::default(),
            committed: Notify::new(),
        }
    }

    /// A transaction is about to end that wrote these events: id, order, version.
    pub(super) fn opened(&self, events: &[(Uuid, Uuid, i64)]) {
        let mut accounts = self.accounts();
        for (id, order, version) in events {
            let entry = Entry {
                order: *order,
                version: *version,
                fate: Fate::Open,
            };
            accounts.ledger.insert(*id, entry);
        }
    }

    /// That transaction has just ended.
    pub(super) fn closed(&self, events: &[(Uuid, Uuid, i64)], committed: bool) {
        let fate = if committed {
            Fate::Committed(self.started.elapsed())
        } else {
            Fate::RolledBack
        };
        let mut accounts = self.accounts();
        for (id, ..) in events {
            if let Some(entry) = accounts.ledger.get_mut(id) {
                entry.fate = fate;
            }
            if committed && !accounts.seen.contains(id) {
                accounts.missing += 1;
            }
        }
        drop(accounts);
        if committed {
            self.committed.notify_waiters();
        }
    }

    /// The consumer got a record, with this header `event_id`.
    pub(super) fn arrived(&self, event: Option<Uuid>) -> Noted {
        let at = self.started.elapsed();
        let mut accounts = self.accounts();
        accounts.arrivals.push(Arrival { event, at });
        let mut noted = Noted {
            lag: Duration::ZERO,
            duplicate: false,
        };
        let Some(id) = event else { return noted };
        noted.duplicate = !accounts.seen.insert(id);
        if let Some(Fate::Committed(committed)) = accounts.ledger.get(&id).map(|entry| entry.fate) {
            noted.lag = at.saturating_sub(committed);
            if !noted.duplicate {
                accounts.missing -= 1;
            }
        }
        noted
    }

    /// How many committed events have not arrived yet.
    pub(super) fn missing(&self) -> usize {
        self.accounts().missing
    }

    /// Compares the accounts as they stand.
    pub(super) fn verdict(&self) -> Verdict {
        let accounts = self.accounts();
        judge(&accounts.ledger, &accounts.arrivals)
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_counts_what_is_committed_and_has_not_arrived_in_either_order() {
        let books = Books::new();
        let event = |number| [(Uuid::from_u128(number), Uuid::from_u128(100 + number), 1)];
        books.opened(&event(1));
        books.opened(&event(2));
        books.opened(&event(3));
        books.closed(&event(1), true);
        books.closed(&event(2), false);
        assert_eq!(books.missing(), 1);
        // 3 arrives before its writer knows of the commit
        assert!(!books.arrived(Some(Uuid::from_u128(3))).duplicate);
        books.closed(&event(3), true);
        assert_eq!(books.missing(), 1);
        books.arrived(Some(Uuid::from_u128(1)));
        assert_eq!(books.missing(), 0);
        assert!(books.arrived(Some(Uuid::from_u128(1))).duplicate);
        assert_eq!(books.missing(), 0);
        assert!(books.verdict().kept());
    }
}
