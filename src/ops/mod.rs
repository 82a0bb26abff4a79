//! What surrounds the flow: logs, signals, and the points at which a test can break it.

pub mod controls;

pub mod log;

pub mod signals;

mod failpoint;

mod mistake;

mod random;

pub(crate) use failpoint::failpoint;
pub(crate) use mistake::{Mistake, is_news, makes};
pub(crate) use random::random;
