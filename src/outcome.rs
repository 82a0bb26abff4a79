//! What became of one record: the sink's word, in the relay's terms.

use std::fmt;
use std::ops::Deref;

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
/// limits, never a payload or a key. A pointer to what is told: nearly every record has none, and each batch has
/// several lists of outcomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(Box<Told>);

/// What a [`Reason`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// A short, stable word for metrics and filters, such as `too_large`.
    pub class: &'static str,
    /// One sentence for the operator.
    pub text: String,
}

impl Reason {
    /// A reason of class `class`, told as `text`.
    pub fn new(class: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self(Box::new(Told { class, text }))
    }
}

impl Deref for Reason {
    type Target = Told;

    fn deref(&self) -> &Told {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.text)
    }
}
