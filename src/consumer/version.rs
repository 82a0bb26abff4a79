//! Gaps, by a version that the service counts for each aggregate: 1, 2, 3, … Only such a number has a next one.

/// What an event's version is to somebody who has the aggregate at another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next one: act.
    Next,
    /// That version, or a later one, is here already.
    Repeat,
    /// There are versions between. Never the relay's doing: somebody skipped a parked row, or lets refused rows be
    /// passed (`on_rejected = "dead_letter"`), or the topic has dropped what was not read in time.
    Gap {
        /// The version that should have come.
        expected: i64,
    },
}

/// Compares an event's `version`, from 1, with the one that is here: `None` before the first event.
///
/// ```
/// use outbox_relay::consumer::{Step, step};
///
/// assert_eq!(step(None, 1), Step::Next);
/// assert_eq!(step(Some(3), 3), Step::Repeat);
/// assert_eq!(step(Some(3), 5), Step::Gap { expected: 4 });
/// ```
#[must_use]
pub const fn step(here: Option<i64>, version: i64) -> Step {
    let here = match here {
        Some(here) => here,
        None => 0,
    };
    if version <= here {
        Step::Repeat
    } else if version == here + 1 {
        Step::Next
    } else {
        Step::Gap { expected: here + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_is_told_from_a_repeat_and_from_a_gap() {
        let mut here = None;
        let mut told = Vec::new();
        for version in [2, 1, 1, 2, 3, 2, 5, 4, 5] {
            let found = step(here, version);
            if found == Step::Next {
                here = Some(version);
            }
            told.push(found);
        }
        use Step::{Gap, Next, Repeat};
        let expected = [
            Gap { expected: 1 },
            Next,
            Repeat,
            Next,
            Next,
            Repeat,
            Gap { expected: 4 },
            Next,
            Next,
        ];
        assert_eq!(told, expected);
    }
}
