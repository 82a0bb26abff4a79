//! What surrounds the flow: logs, signals, what a relay knows of itself and how it tells, traces, and the
//! points at which a test can break it.

pub mod controls;

pub mod log;

pub mod signals;

pub mod traces;

pub mod facts;

pub mod ask;

pub mod http;

pub mod metrics;

mod clock;

mod histogram;

mod progress;

mod recent;

mod reminders;

mod tally;

mod failpoint;

mod mistake;

mod random;

pub(crate) use clock::{text as time_text, text_ago, text_now, unix_s, unix_us};
pub(crate) use failpoint::failpoint;
pub(crate) use histogram::{Histogram, as_f64};
pub(crate) use mistake::{Mistake, is_news, makes};
pub(crate) use progress::{Loops, Progress, Step};
pub(crate) use random::random;
pub(crate) use recent::all as recent_errors;
pub(crate) use reminders::Reminders;
pub(crate) use tally::{Counted, Poll, TOPICS_MAX, Tally, TopicCounted, WINDOW, WINDOW_STEP};
