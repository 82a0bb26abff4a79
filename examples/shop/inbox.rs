//! Reading events: for each record one transaction, in which the mark, the effect and the event that follows from
//! it are one. The heart of the example; the services differ in [`Service::act`] alone.

use std::time::Duration;

use outbox_relay::consumer::{Consumer, Seen};
use sqlx::{PgConnection, PgPool};
use tokio::time::sleep;

use crate::Failure;
use crate::mistakes;
use crate::outbox::Draft;
use crate::settings::Settings;
use crate::stream::{Event, Stream};

/// How long to wait before the same record is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Somebody who acts on events.
pub(crate) trait Service {
    /// What its marks are kept under, and its group in Kafka.
    const CONSUMER: Consumer;

    /// The topics it reads, by their names in the contract.
    const TOPICS: &'static [&'static str];

    /// Does what follows from an event, in `transaction`, and returns the event that follows, if one does. Called
    /// once for each event, however often it arrives.
    async fn act(
        &self,
        transaction: &mut PgConnection,
        event: &Event,
    ) -> Result<Option<Draft>, Failure>;
}

/// Acts on whatever arrives, until the process ends. A record that fails is tried again and nothing passes it: the
/// order of events is worth more here than the next one.
pub(crate) async fn follow<S: Service>(
    service: &S,
    pool: &PgPool,
    settings: &Settings,
) -> Result<(), Failure> {
    let mut stream = Stream::open(S::CONSUMER.name(), S::TOPICS, settings)?;
    loop {
        let event = stream.next().await?;
        mistakes::before(&stream, &event)?;
        while let Err(why) = once(service, pool, &event).await {
            tracing::warn!("{} is tried again: {why}", event.event_type);
            sleep(RETRY_PAUSE).await;
        }
        // Only now: whatever dies before this has the record come again, and `once` passes it over.
        stream.done(&event)?;
    }
}

/// One record. What was acted on before is passed over.
async fn once<S: Service>(service: &S, pool: &PgPool, event: &Event) -> Result<(), Failure> {
    if let Some(mistake) = mistakes::made() {
        return mistakes::once(mistake, service, pool, event).await;
    }
    let mut transaction = pool.begin().await?;
    let seen = S::CONSUMER.take(&mut transaction, &event.arrival()).await?;
    if seen != Seen::Repeat
        && let Some(follows) = service.act(&mut transaction, event).await?
    {
        follows.write(&mut transaction).await?;
    }
    note(&mut transaction, event, seen).await?;
    transaction.commit().await?;
    Ok(())
}

/// Writes down what was no news, for the report of this example.
pub(crate) async fn note(
    transaction: &mut PgConnection,
    event: &Event,
    seen: Seen,
) -> Result<(), Failure> {
    let what = match seen {
        Seen::New => return Ok(()),
        Seen::Late => "late",
        Seen::Repeat => "repeat",
    };
    sqlx::query("insert into noted (event_id, what) values ($1, $2)")
        .bind(event.event_id)
        .bind(what)
        .execute(transaction)
        .await?;
    Ok(())
}
