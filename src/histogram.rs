//! A histogram of durations in fixed memory: some 3 % exact, from a nanosecond to centuries.

use std::time::Duration;

/// Each power of two is divided into this many buckets of equal width.
const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.trailing_zeros();
const BUCKETS: usize = ((64 - STEP_BITS as usize) + 1) * STEPS as usize;

/// How often durations occurred.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new()
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Histogram({} of p50 {:?}, p99 {:?}, max {:?})",
            self.count,
            self.p50(),
            self.p99(),
            self.max()
        )
    }
}

impl Histogram {
    /// An empty histogram of some 15 KiB.
    pub fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS].into(), count: 0, max: 0 }
    }

    /// Counts one duration. Does not allocate.
    pub fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds what another histogram counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (own, more) in self.counts.iter_mut().zip(&other.counts) {
            *own += more;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest; exact.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// Half of the durations are no longer than this.
    pub fn p50(&self) -> Duration {
        self.per_mille(500)
    }

    /// 99 of 100 durations are no longer than this.
    pub fn p99(&self) -> Duration {
        self.per_mille(990)
    }

    /// A duration that so many of 1000 do not exceed: never too low, and too high by at most one part in 32.
    fn per_mille(&self, share: u64) -> Duration {
        let wanted =
            u64::try_from((u128::from(self.count) * u128::from(share)).div_ceil(1000)).unwrap_or(u64::MAX);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return Duration::from_nanos(highest_in(index).min(self.max));
            }
        }
        Duration::ZERO
    }
}

/// Values below `STEPS` have a bucket each; above, a bucket spans one `STEPS`-th of its power of two.
fn bucket(nanos: u64) -> usize {
    let shift = (64 - STEP_BITS).saturating_sub(nanos.leading_zeros()).saturating_sub(1);
    let index = u64::from(shift) * STEPS + (nanos >> shift);
    usize::try_from(index).unwrap_or(BUCKETS - 1)
}

fn highest_in(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / STEPS).saturating_sub(1);
    let step = u128::from(index - shift * STEPS) + 1;
    u64::try_from((step << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(nanos: &[u64]) -> Histogram {
        let mut histogram = Histogram::new();
        nanos.iter().for_each(|n| histogram.record(Duration::from_nanos(*n)));
        histogram
    }

    fn any_nanos() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0_u32..64).prop_map(|(bits, shift)| bits >> shift)
    }

    proptest! {
        #[test]
        fn shares_are_those_of_a_sorted_list(nanos in prop::collection::vec(any_nanos(), 1..300)) {
            let histogram = of(&nanos);
            let mut sorted = nanos;
            sorted.sort_unstable();
            for (share, told) in [(500, histogram.p50()), (990, histogram.p99())] {
                let exact = sorted[(sorted.len() * share).div_ceil(1000) - 1];
                let told = u64::try_from(told.as_nanos()).unwrap();
                prop_assert!(told >= exact, "{told} < {exact}");
                prop_assert!(told - exact <= exact / STEPS, "{told} is too far above {exact}");
            }
            prop_assert_eq!(histogram.max(), Duration::from_nanos(sorted[sorted.len() - 1]));
        }

        #[test]
        fn merging_is_counting_both(a in prop::collection::vec(any_nanos(), 0..50), b in prop::collection::vec(any_nanos(), 0..50)) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }
    }

    #[test]
    fn the_ends_of_the_range_have_buckets() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(highest_in(BUCKETS - 1), u64::MAX);
        assert_eq!(of(&[]).p99(), Duration::ZERO);
        assert_eq!(of(&[0, u64::MAX]).p99(), Duration::from_nanos(u64::MAX));
    }
}
