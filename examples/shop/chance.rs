//! Chance, good enough for a toy: xorshift64*, seeded by the system.

use std::time::Duration;

use uuid::Uuid;

pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Self {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        // xorshift stays at zero for ever, so never start there
        Self(high ^ low.rotate_left(32) | 1)
    }

    /// A number from 0 to `limit` - 1.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let random = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        usize::try_from(random).unwrap_or_default() % limit.max(1)
    }

    /// One of these.
    pub(crate) fn one_of(&mut self, words: &[&'static str]) -> &'static str {
        words
            .get(self.below(words.len()))
            .copied()
            .unwrap_or_default()
    }

    /// A time from `min_ms` to `max_ms`, both in milliseconds.
    pub(crate) fn between_ms(&mut self, min_ms: usize, max_ms: usize) -> Duration {
        let ms = min_ms + self.below(max_ms.saturating_sub(min_ms) + 1);
        Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
    }
}
