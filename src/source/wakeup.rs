//! NOTIFY as a hint. Polling never relies on it: what is missed while the connection is away is
//! found by the next poll.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::polling::Polling;
use super::secured::refused;
use super::session::{answer, options};
use crate::config::{Database, TableName};

/// The channel of the trigger that `migrate` adds.
const CHANNEL: &str = "outbox_relay";

/// How long nothing may be heard before the relay asks whether the server is still there.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Listens and wakes `polling` when rows of `table` were inserted, until `stop`.
///
/// # Errors
/// The connection could not be made, or broke. The caller may try again.
pub async fn listen(
    database: &Database,
    table: &TableName,
    polling: &Arc<Polling>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let options = options(database)?;
    let refused = |error| refused(&options, error);
    let limit = database.connect_timeout;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(limit)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await.map_err(refused)?;
    let listening = listener.listen(CHANNEL);
    answer(limit, "listen for inserts", listening).await?;
    let name = table.to_string();
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            heard = tokio::time::timeout(SILENCE_MAX, listener.try_recv()) => heard,
        };
        let Ok(heard) = heard else {
            // nobody writes, or the peer is gone without a word
            let ping = sqlx::raw_sql("select 1").execute(&mut listener);
            answer(limit, "say that it is there", ping).await?;
            continue;
        };
        let heard = heard.map_err(refused)?;
        // `None`: the connection was lost and made anew, so something may have been missed
        if heard.is_none_or(|notification| notification.payload() == name) {
            polling.woken();
        }
    }
}
