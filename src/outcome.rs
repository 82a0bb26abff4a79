//! What became of one record: the sink's word, in the relay's terms.

use std::fmt;

/// What Kafka, or the checks before it, said of one record.
///
/// Silence is [`Outcome::Unfinished`]: whatever is not known to be in the log is not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// In the log, at a real offset.
    Delivered {
        /// The partition it was written to.
        partition: i32,
        /// Its place there; never negative (see `sink::outcome` for why that matters).
        offset: i64,
    },
    /// Refused for what it is, and refused when it was tried alone: no retry will help.
    Rejected(Reason),
    /// Refused together with others of its batch, so perhaps innocent: try it again, alone.
    Suspect,
    /// Not tried, or refused, for a fault of its topic: it waits until the topic can be written.
    Paused,
    /// Not delivered as far as anyone knows, and not this record's fault: try it again.
    Unfinished,
    /// Not tried, because its aggregate waits behind a row that is parked.
    Held,
}

/// Why a record was rejected. Goes to the `parked` table and the log, so it holds names, sizes and
/// limits, never a payload or a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// A short, stable word for metrics and filters, such as `too_large`.
    pub class: &'static str,
    /// One sentence for the operator.
    pub text: String,
}

impl Reason {
    /// A reason of class `class`, told as `text`.
    pub fn new(class: &'static str, text: impl Into<String>) -> Self {
        Self {
            class,
            text: text.into(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.text)
    }
}
