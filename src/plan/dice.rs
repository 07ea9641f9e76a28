//! Numbers that look random and are the same on every rank and machine.

/// SplitMix64 from a fixed seed.
pub(super) struct Dice(u64);

impl Dice {
    pub fn new() -> Dice {
        Dice(1)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is below 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        (((self.next() >> 32) * n as u64) >> 32) as usize
    }

    /// 256 times a number of the exponential distribution of mean 1: minus the logarithm of a uniform number, by its
    /// leading zeros and a line between powers of two.
    pub fn exponential(&mut self) -> i64 {
        let bits = self.next() | 1;
        let zeros = i64::from(bits.leading_zeros());
        let below = ((bits << zeros) >> 55) as i64 & 0xff;
        // The logarithm to base two is 256 * zeros + (256 - below); ln 2 is 177 / 256.
        (256 * zeros + 256 - below) * 177 / 256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_the_exponential_is_one_and_numbers_stay_below() {
        let mut dice = Dice::new();
        let mean = (0..4096).map(|_| dice.exponential()).sum::<i64>() / 4096;
        assert!((240..=272).contains(&mean), "{mean}");
        let mut seen = [0; 7];
        (0..700).for_each(|_| seen[dice.below(7)] += 1);
        assert!(seen.iter().all(|&n| (60..140).contains(&n)), "{seen:?}");
    }
}
