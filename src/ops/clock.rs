//! The wall's clock, as text. What lasts is measured by tokio's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time, RFC 3339 in UTC.
pub(crate) fn text(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

pub(crate) fn text_now() -> String {
    text(SystemTime::now())
}

/// The point in time so long ago.
pub(crate) fn text_ago(ago: Duration) -> String {
    let now = SystemTime::now();
    text(now.checked_sub(ago).unwrap_or(UNIX_EPOCH))
}

/// Microseconds since 1970 by this machine's clock.
pub(crate) fn unix_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}

/// Seconds since 1970.
pub(crate) fn unix_s(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
