//! How often something that lasts is said again: after a minute, then ever more seldom, so that an
//! outage of a night is a handful of lines.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// See the module's description.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reminders {
    said_at: Instant,
    pause: Duration,
    longest: Duration,
}

impl Reminders {
    /// It was said now.
    pub(crate) fn new(now: Instant) -> Self {
        Self::every(FIRST, now)
    }

    /// As [`Self::new`], with `pause` before the first reminder.
    pub(crate) fn every(pause: Duration, now: Instant) -> Self {
        Self {
            said_at: now,
            pause,
            longest: LONGEST.max(pause),
        }
    }

    /// How long ago it was last said.
    pub(crate) fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.said_at)
    }

    /// Whether to say it again now; whoever is told so says it.
    pub(crate) fn due(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.said_at) < self.pause {
            return false;
        }
        self.said_at = now;
        self.pause = self.pause.saturating_mul(2).min(self.longest);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_a_handful_of_lines_and_a_day_few_more() {
        let start = Instant::now();
        let lines = |hours: u32| {
            let mut reminders = Reminders::new(start);
            let seconds = (1..=3600 * hours).map(|s| start + Duration::from_secs(s.into()));
            seconds.filter(|now| reminders.due(*now)).count()
        };
        assert_eq!(lines(1), 5);
        assert_eq!(lines(24), 28);
    }
}
