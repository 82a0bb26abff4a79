//! Measurements by size: counts between fixed bounds. Pure; whoever shares one locks it.

/// Bounds of what lasts, in seconds: from a poll to an outage.
pub(crate) const SECONDS: &[f64] = &[
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0, 300.0, 1800.0, 7200.0,
];
/// Bounds of how many rows a batch has.
pub(crate) const ROWS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
];

/// How many measurements there were up to each bound, and beyond the last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    /// One measurement. What is below nothing, by clocks that differ, counts as nothing.
    pub(crate) fn observe(&mut self, value: f64) {
        let value = value.max(0.0);
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at] += 1;
        self.sum += value;
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(crate) fn sum(&self) -> f64 {
        self.sum
    }

    /// Each bound, with the measurements up to it.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let up_to = self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        self.bounds.iter().copied().zip(up_to)
    }

    /// Adds the measurements of `other`, which has the same bounds.
    pub(crate) fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum += other.sum;
    }

    /// What came since `earlier`, an older state of the same histogram.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts);
        Self {
            bounds: self.bounds,
            counts: counts
                .map(|(now, then)| now.saturating_sub(*then))
                .collect(),
            sum: self.sum - earlier.sum,
        }
    }

    /// The value that the share `q` of the measurements does not exceed, as far as the bounds tell:
    /// evenly spread between two of them. Beyond the last bound it is that bound.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (q * as_f64(count)).max(1.0);
        let (mut below, mut seen) = (0.0, 0_u64);
        for (bound, here) in self.bounds.iter().zip(&self.counts) {
            if as_f64(seen + here) >= rank && *here > 0 {
                let share = (rank - as_f64(seen)) / as_f64(*here);
                return Some(below + (bound - below) * share);
            }
            seen += here;
            below = *bound;
        }
        self.bounds.last().copied()
    }
}

/// Exact up to 2^53, and near enough beyond.
#[expect(clippy::cast_precision_loss, reason = "counts are shown, not compared")]
pub(crate) fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        let mut histogram = Histogram::new(SECONDS);
        assert_eq!(histogram.quantile(0.5), None);
        for _ in 0..90 {
            histogram.observe(0.004);
        }
        for _ in 0..10 {
            histogram.observe(7.0);
        }
        let p50 = histogram.quantile(0.5).unwrap();
        assert!(p50 > 0.003 && p50 <= 0.005, "{p50}");
        let p99 = histogram.quantile(0.99).unwrap();
        assert!(p99 > 5.0 && p99 <= 10.0, "{p99}");
        assert_eq!(histogram.count(), 100);
        assert!((histogram.sum() - 70.36).abs() < 1e-9);
        assert_eq!(histogram.cumulative().last(), Some((7200.0, 100)));
    }

    #[test]
    fn what_is_on_a_bound_counts_below_it_and_what_is_beyond_all_is_not_lost() {
        let mut histogram = Histogram::new(ROWS);
        for value in [-3.0, 1.0, 1.5, 1e9] {
            histogram.observe(value);
        }
        let up_to: Vec<_> = histogram.cumulative().take(2).collect();
        assert_eq!(up_to, [(1.0, 2), (2.0, 3)]);
        assert_eq!(histogram.count(), 4);
        assert_eq!(histogram.quantile(1.0), Some(10_000.0));
    }

    #[test]
    fn a_window_has_only_what_came_in_it() {
        let mut histogram = Histogram::new(SECONDS);
        histogram.observe(100.0);
        let earlier = histogram.clone();
        histogram.observe(0.001);
        let window = histogram.since(&earlier);
        assert_eq!(window.count(), 1);
        assert!(window.quantile(1.0).unwrap() <= 0.001);
    }
}
