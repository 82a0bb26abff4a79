//! Mistakes that a test build can be told to make, so that the tests can be seen to notice them: a
//! harness that has never caught anything proves nothing. In a build without the feature
//! `failpoints` none of them exists.

/// The ways to break a promise. `FAILPOINTS=<name>=return` makes the relay take one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// Rows are settled first and published then.
    SettleFirst,
    /// Lanes are not locked, and nobody counts what was passed over.
    NoLaneLock,
    /// Keys go where librdkafka's own partitioner puts them.
    DefaultPartitioner,
    /// A row is claimed only if its `seq` is above all that were claimed before.
    SeqCursor,
    /// A row that was not published counts as done if a later one of its batch was.
    SettlePastUnfinished,
    /// All pending rows up to the last one acknowledged are settled.
    SettleByRange,
    /// A report without an offset counts.
    BelieveNoOffset,
    /// Five requests are on the way at once, and a partition's first record is not waited for.
    FiveInFlight,
    /// A producer is purged while it is being filled, and filled on.
    PurgeOpen,
}

/// Whether this process is to make `mistake`.
#[cfg(feature = "failpoints")]
pub(crate) fn makes(mistake: Mistake) -> bool {
    let name = match mistake {
        Mistake::SettleFirst => "mistake_settle_first",
        Mistake::NoLaneLock => "mistake_no_lane_lock",
        Mistake::DefaultPartitioner => "mistake_default_partitioner",
        Mistake::SeqCursor => "mistake_seq_cursor",
        Mistake::SettlePastUnfinished => "mistake_settle_past_unfinished",
        Mistake::SettleByRange => "mistake_settle_by_range",
        Mistake::BelieveNoOffset => "mistake_believe_no_offset",
        Mistake::FiveInFlight => "mistake_five_in_flight",
        Mistake::PurgeOpen => "mistake_purge_open",
    };
    fail::fail_point!(name, |_| true);
    false
}

/// Whether this process is to make `mistake`: never, in a build for use.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn makes(_: Mistake) -> bool {
    false
}

/// For [`Mistake::SeqCursor`]: whether `seq` is above all that were given before.
pub(crate) fn is_news(seq: i64) -> bool {
    use std::sync::atomic::{AtomicI64, Ordering};
    static CURSOR: AtomicI64 = AtomicI64::new(i64::MIN);
    CURSOR.fetch_max(seq, Ordering::Relaxed) < seq
}
