//! NOTIFY as a hint. Polling never relies on it: what is missed while the connection is away is
//! found by the next poll.

use std::sync::Arc;

use sqlx::postgres::PgListener;
use tokio_util::sync::CancellationToken;

use super::polling::Polling;
use super::{Cause, Error};
use crate::config::{Database, TableName};

/// The channel of the trigger that `migrate` adds.
const CHANNEL: &str = "outbox_relay";

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
    let connect = |error: sqlx::Error| Error::Connect(Cause::from(error));
    let mut listener = PgListener::connect(database.url.expose())
        .await
        .map_err(connect)?;
    listener.listen(CHANNEL).await.map_err(connect)?;
    let name = table.to_string();
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            heard = listener.try_recv() => heard.map_err(connect)?,
        };
        // `None`: the connection was lost and made anew, so something may have been missed
        if heard.is_none_or(|notification| notification.payload() == name) {
            polling.woken();
        }
    }
}
