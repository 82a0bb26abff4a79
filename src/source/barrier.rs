//! The flush barrier: nothing is published that a crash of Postgres could still take back.
//!
//! A transaction with `synchronous_commit = off` is visible before its commit record is on disk. A
//! relay that claims its row, publishes it, and then sees Postgres crash has published an event that
//! never was. The write-ahead log is one sequence: whoever commits synchronously after the claim has
//! flushed all that the claim saw. The claim's own transaction stays open, so this is a second one,
//! on a connection of its own. It locks a row of the relay's own table, the smallest thing that makes
//! a commit wait for the disk: a transaction that wrote nothing does not wait, and a logical message
//! would be seen by whoever decodes the log.
//!
//! **Cost**: one round trip and one flush for each batch, and one connection for each outbox. Batches
//! that ask while a flush is under way share the next.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::error::Error;
use super::layout::literal;
use super::session::{Session, committed};

/// See the module's description. The workers of an outbox share one.
#[derive(Debug)]
pub(super) struct Barrier {
    change: String,
    /// How often it was asked.
    asked: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    session: Session,
    /// Who asked up to this time is behind a flush.
    flushed: u64,
    /// A flush began and was not seen to end.
    flushing: bool,
}

impl Barrier {
    /// For the outbox called `outbox`, as its row in the relay's own table is.
    pub(super) fn new(outbox: &str, session: Session) -> Self {
        let outbox = literal(outbox);
        Self {
            // `on` also waits for a synchronous standby, whatever the database's default is
            change: format!(
                "set local synchronous_commit = on;
                 select from outbox_relay.outbox where name = {outbox} for no key update"
            ),
            asked: AtomicU64::new(0),
            state: Mutex::new(State {
                session,
                flushed: 0,
                flushing: false,
            }),
        }
    }

    /// Returns when all that was visible before this call can no longer be lost.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused: then nothing is known to be safe.
    pub(super) async fn pass(&self) -> Result<(), Error> {
        let ticket = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut state = self.state.lock().await;
        if state.flushed >= ticket {
            return Ok(());
        }
        if std::mem::replace(&mut state.flushing, true) {
            state.session.discard();
        }
        // whoever asked by now has made its claim, so this flush is theirs too
        let asked = self.asked.load(Ordering::Acquire);
        let limit = state.session.answer_timeout();
        let connection = state.session.connect().await?;
        let doing = "flush what was claimed";
        committed(connection, limit, doing, &self.change).await?;
        state.flushed = asked;
        state.flushing = false;
        Ok(())
    }
}
