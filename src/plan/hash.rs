//! A 64-bit hash that is the same on every machine, build and run.

use crate::types::{Mask, Range};

/// Mixes words one after the other. The standard library promises no stability of its hashers, and ranks compare
/// hashes across machines.
#[derive(Clone, Debug)]
pub(crate) struct Hasher(u64);

impl Hasher {
    pub fn new() -> Hasher {
        // Changes with the layout of what is hashed, so that libraries that disagree about plans disagree here.
        Hasher(0x6d61_6769_0000_0001)
    }

    pub fn word(&mut self, word: i64) {
        // The constant is odd, so each step is a bijection of the state: no word is forgotten.
        self.0 = (self.0 ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
    }

    pub fn words<const N: usize>(&mut self, words: [i64; N]) {
        for word in words {
            self.word(word);
        }
    }

    pub fn range(&mut self, range: &Range) {
        self.words([range.start, range.end]);
    }

    pub fn mask(&mut self, mask: &Mask) {
        self.words([mask.total_q(), mask.total_k(), mask.slices().len() as i64]);
        for slice in mask.slices() {
            self.range(&slice.q);
            self.range(&slice.k);
            self.words([slice.band.lo, slice.band.hi]);
        }
    }

    pub fn finish(&self) -> u64 {
        let mut h = self.0;
        h = (h ^ (h >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        h = (h ^ (h >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        h ^ (h >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_value_matter_and_the_value_is_pinned() {
        let of = |words: &[i64]| {
            let mut h = Hasher::new();
            words.iter().for_each(|&w| h.word(w));
            h.finish()
        };
        assert_ne!(of(&[1, 2]), of(&[2, 1]));
        assert_ne!(of(&[0]), of(&[0, 0]));
        assert_ne!(of(&[i64::MIN]), of(&[0]));
        // A change here means that ranks of different builds no longer agree: raise the version in `new`.
        assert_eq!(of(&[1, -2, 3]), PINNED);
    }

    const PINNED: u64 = 0x67f8_a3a0_39a0_bc22;
}
