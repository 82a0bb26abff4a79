//! Pauses between attempts that failed. Pure: randomness comes in as a number.

use std::time::Duration;

/// A pause that doubles from attempt to attempt up to a limit, each shortened by up to a half at
/// random, so that relays which failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// From `min` to `max`, both without the random part.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min: min.min(max),
            max,
            failures: 0,
        }
    }

    /// The pause before the next attempt. `random` picks its place between half and whole.
    #[must_use]
    pub fn next(&mut self, random: u32) -> Duration {
        let whole = self
            .min
            .saturating_mul(1 << self.failures.min(16))
            .min(self.max);
        self.failures = self.failures.saturating_add(1);
        whole / 2 + whole.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
    }

    /// Starts again from the shortest pause, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Attempts that failed since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let mut next = || backoff.next(u32::MAX).as_millis();
        assert_eq!(
            [next(), next(), next(), next(), next(), next()],
            [100, 200, 400, 800, 1000, 1000]
        );
        assert_eq!(backoff.next(0).as_millis(), 500);
        backoff.reset();
        assert_eq!((backoff.next(0).as_millis(), backoff.failures()), (50, 1));
    }
}
