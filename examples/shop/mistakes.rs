//! Nothing to copy: ways to do it wrong, one at a time, each of which the checker must notice. A checker that has
//! never caught anything proves nothing. `tests/shop.rs` has it catch each of them.

use std::sync::OnceLock;
use std::time::Duration;

use outbox_relay::consumer::Seen;
use sqlx::PgPool;
use tokio::time::sleep;

use crate::Failure;
use crate::inbox::{Service, note};
use crate::stream::{Event, Stream};

/// How long a process is between two steps that ought to be one, so that it is killed there now and then.
const BETWEEN: Duration = Duration::from_millis(25);

/// A way to do it wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mistake {
    /// The effect is committed, and the mark after it.
    MarkAfterCommit,
    /// Nobody looks at the marks.
    IgnoreMarks,
    /// The record is done with before it is acted on.
    OffsetFirst,
    /// The effect is committed, and the event that tells of it is written after it: no outbox, in effect.
    TellAfterCommit,
    /// A refused payment releases nothing.
    NoRelease,
    /// A reader gets what there is, token or not.
    DoNotWait,
}

impl Mistake {
    /// As the command line has it.
    pub(crate) fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

static MADE: OnceLock<Mistake> = OnceLock::new();

/// Makes this process make a mistake.
pub(crate) fn make(mistake: Mistake) {
    MADE.set(mistake).ok();
}

/// The mistake of this process, where it handles records.
pub(crate) fn made() -> Option<Mistake> {
    MADE.get().copied()
}

/// Whether it is this one.
pub(crate) fn makes(mistake: Mistake) -> bool {
    made() == Some(mistake)
}

/// What is done with a record before anything else.
pub(crate) fn before(stream: &Stream, event: &Event) -> Result<(), Failure> {
    if makes(Mistake::OffsetFirst) {
        stream.commit(event)?;
    }
    Ok(())
}

/// `inbox::once`, done wrong.
pub(crate) async fn once<S: Service>(
    mistake: Mistake,
    service: &S,
    pool: &PgPool,
    event: &Event,
) -> Result<(), Failure> {
    let mut transaction = pool.begin().await?;
    let seen = match mistake {
        Mistake::MarkAfterCommit => {
            let marked: bool = sqlx::query_scalar(
                "select exists (select from processed_events where consumer = $1 and event_id = $2)",
            )
            .bind(S::CONSUMER.name())
            .bind(event.event_id)
            .fetch_one(&mut *transaction)
            .await?;
            if marked { Seen::Repeat } else { Seen::New }
        }
        _ => S::CONSUMER.take(&mut transaction, &event.arrival()).await?,
    };
    let mut follows = None;
    let left_out = mistake == Mistake::NoRelease
        && event.event_type == "PaymentRefused"
        && S::CONSUMER.name() == "inventory";
    if (seen != Seen::Repeat || mistake == Mistake::IgnoreMarks) && !left_out {
        follows = service.act(&mut transaction, event).await?;
    }
    note(&mut transaction, event, seen).await?;
    if mistake == Mistake::TellAfterCommit && follows.is_some() {
        transaction.commit().await?;
        sleep(BETWEEN).await;
        transaction = pool.begin().await?;
    }
    if let Some(follows) = follows {
        follows.write(&mut transaction).await?;
    }
    if mistake == Mistake::OffsetFirst {
        sleep(BETWEEN).await;
    }
    transaction.commit().await?;
    if mistake == Mistake::MarkAfterCommit {
        sleep(BETWEEN).await;
        let mut transaction = pool.begin().await?;
        S::CONSUMER.take(&mut transaction, &event.arrival()).await?;
        transaction.commit().await?;
    }
    Ok(())
}
