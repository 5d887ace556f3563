//! Reproducible orders.

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): enough randomness for a shuffle.
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The units `0..size` in a random order (Fisher and Yates).
    pub(super) fn shuffled(&mut self, size: usize) -> Vec<usize> {
        let mut shuffled: Vec<usize> = (0..size).collect();
        for i in (1..size).rev() {
            shuffled.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        shuffled
    }
}
