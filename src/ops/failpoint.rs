//! Named steps at which a test build can be killed, paused or delayed.

/// A step called `name`. In a build with the feature `failpoints`, `FAILPOINTS=name=return` ends
/// the process there without a word, as a crash would; `sleep(ms)` and `pause` hold it. Elsewhere
/// this is nothing.
pub(crate) fn failpoint(name: &'static str) {
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
    fail::fail_point!(name, |_| std::process::abort());
}
