//! Logs: to standard error, for people on a terminal and for machines elsewhere.
//!
//! What librdkafka says arrives through the `log` crate, under its client's target.

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::recent::Recent;
use crate::config::{Log, LogFormat};

/// Puts another filter in force.
type Refilter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

static REFILTER: OnceLock<Refilter> = OnceLock::new();

/// Starts logging, and keeps how to put another filter in force.
macro_rules! start {
    ($lines:expr) => {{
        let lines = $lines.with_filter_reloading();
        let handle = lines.reload_handle();
        let reload = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        REFILTER.get_or_init(|| Box::new(reload));
        lines.finish().with(Recent).try_init()
    }};
}

/// Starts logging as `config` says. Once in a process.
///
/// # Errors
/// The filter does not parse, or something logs already: one sentence.
pub fn start(config: &Log) -> Result<(), String> {
    let filter = filter(&config.filter)?;
    let terminal = io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match config.format {
        LogFormat::Pretty => start!(lines.with_ansi(terminal)),
        LogFormat::Auto if terminal => start!(lines),
        LogFormat::Auto | LogFormat::Json => start!(lines.json().flatten_event(true)),
    };
    started.map_err(|error| format!("cannot log: {error}"))
}

/// Puts another filter in force, for all lines from now on.
///
/// # Errors
/// It does not parse, or nothing logs: one sentence.
pub fn refilter(text: &str) -> Result<(), String> {
    match REFILTER.get() {
        Some(reload) => reload(filter(text)?),
        None => Err("nothing is logged yet".to_owned()),
    }
}

fn filter(text: &str) -> Result<EnvFilter, String> {
    // Postgres' notices are of the kind "already exists, skipping"
    EnvFilter::try_new(format!("sqlx=warn,{text}"))
        .map_err(|error| format!("the log filter does not parse: {error}"))
}
