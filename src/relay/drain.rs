//! Stopping in two stages: nothing new is claimed, then what is in flight may finish under one
//! deadline.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Shared by everything that must stop.
#[derive(Debug, Clone)]
pub struct Drain {
    stop: CancellationToken,
    expired: CancellationToken,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// Nobody has asked to stop yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stop: CancellationToken::new(),
            expired: CancellationToken::new(),
        }
    }

    /// Asks everybody to stop claiming, and lets what is in flight go on for at most `timeout`.
    /// Returns at that deadline; whoever waits for everybody to finish may drop it before.
    pub async fn begin(&self, timeout: Duration) {
        self.stop.cancel();
        tokio::time::sleep_until(Instant::now() + timeout).await;
        self.expired.cancel();
    }

    /// Asks everybody to stop, without a deadline.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Fires when it is time to stop claiming.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Completes when what is in flight must be given up.
    pub async fn expired(&self) {
        self.expired.cancelled().await;
    }
}
