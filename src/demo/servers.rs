//! The demo's servers, for other programs that want to show something without a set-up: `examples/shop`.

use rdkafka::error::KafkaResult;

use super::kafka::Mock;
use super::postgres::{Error, Postgres};
use super::screen::Screen;

/// A temporary PostgreSQL: of binaries on this machine, else of downloaded ones. It listens on nothing but a socket
/// in a directory of its own, and is gone when this is dropped or stopped.
pub struct TemporaryPostgres(Postgres);

impl TemporaryPostgres {
    /// Starts one, and prints what it does: on standard error if it is to be `aside`, else on standard output.
    ///
    /// # Errors
    /// There are no binaries, they cannot be downloaded, or the server does not start: with what to try.
    pub async fn start(aside: bool) -> Result<Self, Error> {
        Ok(Self(Postgres::start(Screen::new(aside)).await?))
    }

    /// The URL of its superuser.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Stops the server and removes its files.
    pub async fn stop(self) {
        // one of our own has nothing to refuse
        self.0.stop().await.ok();
    }
}

/// librdkafka's mock cluster inside this process: it shows the flow, but proves nothing about a broker.
pub struct StandInKafka(Mock);

impl StandInKafka {
    /// How long a fetch should wait there, in milliseconds: it answers an empty one when the wait is over, not when
    /// something arrives.
    pub const FETCH_WAIT_MS: u32 = 10;

    /// Starts one with these topics, of `partitions` each.
    ///
    /// # Errors
    /// librdkafka's own.
    pub async fn start(topics: &[String], partitions: i32) -> KafkaResult<Self> {
        Ok(Self(Mock::start(topics, partitions).await?))
    }

    /// `host:port`.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.0.brokers
    }

    /// Ends it.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}
