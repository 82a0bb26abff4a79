//! What the user sees. With `--json` standard output belongs to the one object, and progress goes
//! to standard error.

use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A place to write lines to. A reader that went away (`| head`) is no reason to stop.
#[derive(Clone, Copy)]
pub(super) struct Screen {
    json: bool,
    colour: bool,
}

/// How a piece of a line looks, on a terminal only.
#[derive(Clone, Copy)]
pub(super) enum Style {
    /// Secondary.
    Dim,
    /// A heading.
    Bold,
    /// Good.
    Green,
    /// Worth a look.
    Yellow,
    /// Bad.
    Red,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        let terminal = if json {
            stderr().is_terminal()
        } else {
            stdout().is_terminal()
        };
        Self {
            json,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// A line of the story.
    pub(super) fn line(self, text: &str) {
        if self.json {
            writeln!(stderr().lock(), "{text}").ok();
        } else {
            writeln!(stdout().lock(), "{text}").ok();
        }
    }

    /// What the demo does next.
    pub(super) fn step(self, text: &str) {
        self.line(&format!("{} {text}", self.style(Style::Dim, "·")));
    }

    /// A line for each event: for people only.
    pub(super) fn event(self, line: impl FnOnce() -> String) {
        if !self.json {
            self.line(&line());
        }
    }

    /// The one object of `--json`.
    pub(super) fn object(self, json: &str) {
        writeln!(stdout().lock(), "{json}").ok();
    }

    /// The text, coloured if that helps.
    pub(super) fn style(self, style: Style, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match style {
            Style::Dim => 2,
            Style::Bold => 1,
            Style::Green => 32,
            Style::Yellow => 33,
            Style::Red => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The time of day in UTC: `HH:MM:SS.mmm`.
pub(super) fn time_of_day() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    clock(since.unwrap_or_default())
}

fn clock(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs() % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since_epoch.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_shows_the_time_of_day() {
        assert_eq!(
            clock(Duration::from_millis(1_700_000_000_045)),
            "22:13:20.045"
        );
    }
}
