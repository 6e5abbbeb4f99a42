//! How long something took, again and again, in 64 bytes.

use std::time::Duration;

use crate::snapshot::{Bucket, Buckets, Number};

/// Upper bounds of the buckets but the last, in ns: from a fork to a slow volume.
pub(crate) const BOUNDS_NS: [u64; 12] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    100_000_000,
    500_000_000,
    2_500_000_000,
    10_000_000_000,
];
const BUCKETS: usize = BOUNDS_NS.len() + 1;

/// Counts of durations by their length, of fixed size; counts stop at `u32::MAX`.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: [u32; BUCKETS],
    sum_ns: u64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, length: Duration) {
        let ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let at = BOUNDS_NS.iter().position(|bound| ns <= *bound);
        if let Some(count) = self.counts.get_mut(at.unwrap_or(BOUNDS_NS.len())) {
            *count = count.saturating_add(1);
        }
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// True if none was counted.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// Its form in a snapshot, in seconds.
    pub fn buckets(&self) -> Buckets {
        let bounds = BOUNDS_NS.iter().map(|ns| Number::seconds(*ns));
        let bounds = bounds.chain([Number::from(u64::MAX)]);
        let buckets = bounds.zip(self.counts).map(|(le, count)| Bucket {
            le,
            n: count.into(),
        });
        Buckets {
            total: Number::seconds(self.sum_ns),
            buckets: buckets.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_is_counted_once_in_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::default();
        assert!(histogram.is_empty());
        for us in [100, 101, 20_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let counts: Vec<u64> = histogram.buckets().buckets.iter().map(|b| b.n).collect();
        assert_eq!(counts, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(histogram.buckets().total.value(), 20.000_201);
        assert!(size_of::<Histogram>() <= 64);
    }
}
