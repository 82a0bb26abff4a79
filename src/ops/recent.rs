//! What the log said of late at warn and error: for `/status`, so that nobody has to find the log
//! first. What the log's filter drops is not here either.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::clock;
use super::facts::{ERRORS_MAX, Trouble};

/// Newest last. One for the process, as the log is.
static RECENT: Mutex<VecDeque<Trouble>> = Mutex::new(VecDeque::new());

/// Remembers lines of the log.
pub(super) struct Recent;

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > Level::WARN {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        remember(line);
    }
}

fn remember(line: Line) {
    let at = clock::text_now();
    let (outbox, text) = (line.outbox.clone(), line.text());
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |known: &Trouble| known.text == text && known.outbox == outbox;
    let mut trouble = match recent.iter().position(same) {
        Some(index) => recent.remove(index).unwrap_or_default(),
        None => Trouble {
            first_at: at.clone(),
            outbox,
            text,
            ..Trouble::default()
        },
    };
    trouble.times += 1;
    trouble.at = at;
    recent.push_back(trouble);
    if recent.len() > ERRORS_MAX {
        recent.pop_front();
    }
}

/// What is remembered, newest first.
pub(crate) fn all() -> Vec<Trouble> {
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    recent.iter().rev().cloned().collect()
}

/// The parts of a line that say what happened; numbers that change with each do not.
#[derive(Default)]
struct Line {
    outbox: Option<String>,
    message: String,
    why: Vec<String>,
}

impl Line {
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for why in &self.why {
            text.push_str(": ");
            text.push_str(why);
        }
        text
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "outbox" => self.outbox = Some(value.to_owned()),
            "error" | "why" | "reason" => self.why.push(value.to_owned()),
            "message" => value.clone_into(&mut self.message),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Writing to a string cannot fail.
        write!(text, "{value:?}").unwrap_or_default();
        self.record_str(field, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn warnings_are_remembered_once_and_counted() {
        let log = tracing_subscriber::registry().with(Recent);
        tracing::subscriber::with_default(log, || {
            for lasted_s in 0..3 {
                tracing::error!(
                    outbox = "public.a_test",
                    lasted_s,
                    error = "no route",
                    "away"
                );
                tracing::info!(outbox = "public.a_test", "well");
            }
            tracing::warn!(outbox = %"public.a_test", "other");
        });
        // other tests of this process may log too
        let mine = |trouble: &Trouble| trouble.outbox.as_deref() == Some("public.a_test");
        let mine: Vec<_> = all().into_iter().filter(mine).collect();
        let told: Vec<_> = mine.iter().map(|t| (t.text.as_str(), t.times)).collect();
        assert_eq!(told, [("other", 1), ("away: no route", 3)]);
    }
}
