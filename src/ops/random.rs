//! Chance, for pauses: it keeps relays that failed together from trying in step.

/// Thirty-two random bits, as `Backoff::next` takes them.
pub(crate) fn random() -> u32 {
    let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
