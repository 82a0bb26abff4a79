//! What each process of the shop is told, by options or by the environment.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::Failure;
use crate::mistakes::{self, Mistake};

/// How long a database may take to be there.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a service finds its own database, and Kafka.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Settings {
    /// The service's own database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: String,

    /// host:port of Kafka's brokers
    #[arg(long, env = "KAFKA_BROKERS")]
    pub(crate) brokers: String,

    /// What the names of topics and groups begin with, so that two shops can share a Kafka
    #[arg(long, env = "SHOP_PREFIX", default_value = "")]
    pub(crate) topic_prefix: String,

    /// How long a broker may wait for records, in milliseconds; the stand-in for Kafka always waits so long
    #[arg(long, env = "SHOP_FETCH_WAIT_MS", default_value = "100")]
    pub(crate) fetch_wait_ms: u32,

    /// Where to listen, for the services that are asked something
    #[arg(long, env = "SHOP_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,

    /// Do it wrong, in one of the ways that the checker must notice
    #[arg(long, env = "SHOP_MISTAKE", hide = true)]
    pub(crate) mistake: Option<Mistake>,
}

impl Settings {
    /// These, and the mistake among them is made from now on.
    pub(crate) fn heard(self) -> Self {
        self.mistake.into_iter().for_each(mistakes::make);
        self
    }

    /// A topic's name here: `order-events` for `order`.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("{}{name}-events", self.topic_prefix)
    }

    /// Connections to the service's own database.
    pub(crate) async fn pool(&self) -> Result<PgPool, Failure> {
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(DATABASE_TIMEOUT)
            .connect(&self.database_url)
            .await?;
        Ok(pool)
    }
}
