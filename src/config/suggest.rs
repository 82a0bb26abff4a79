//! "Did you mean …?"

/// Below this likeness (of 0 to 1) a suggestion puzzles more than it helps.
const LIKENESS_MIN: f64 = 0.45;

/// The candidate most like `written`, if any is like it at all.
pub(super) fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (likeness(written, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

fn likeness(a: &str, b: &str) -> f64 {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    strsim::normalized_damerau_levenshtein(&a.replace('-', "_"), &b)
}
