//! Logs: to standard error, for people on a terminal and for machines elsewhere.
//!
//! What librdkafka says arrives through the `log` crate, under its client's target.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::recent::Recent;
use crate::config::{Log, LogFormat};

/// Starts logging as `config` says. Once in a process.
///
/// # Errors
/// The filter does not parse, or something logs already: one sentence.
pub fn start(config: &Log) -> Result<(), String> {
    // Postgres' notices are of the kind "already exists, skipping"
    let filter = EnvFilter::try_new(format!("sqlx=warn,{}", config.filter))
        .map_err(|error| format!("the log filter does not parse: {error}"))?;
    let terminal = io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match config.format {
        LogFormat::Pretty => lines.with_ansi(terminal).finish().with(Recent).try_init(),
        LogFormat::Auto if terminal => lines.finish().with(Recent).try_init(),
        LogFormat::Auto | LogFormat::Json => {
            let lines = lines.json().flatten_event(true).finish();
            lines.with(Recent).try_init()
        }
    };
    started.map_err(|error| format!("cannot log: {error}"))
}
