//! Small random changes to an input, the same for the same seed.

/// Longest input that a mutation makes.
const MAX_LEN: usize = 4096;

/// Values at which integers change their nature.
const INTERESTING: [i64; 16] = [
    0,
    1,
    -1,
    2,
    7,
    64,
    127,
    255,
    -128,
    4096,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 40,
    i64::MAX / 4,
    i64::MAX,
    i64::MIN,
];

/// xorshift64*.
pub struct Random(u64);

impl Random {
    /// Any seed will do.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Overwrites bytes at a random place with the first 1, 2, 4 or 8 bytes of `value`.
fn overwrite(data: &mut [u8], value: i64, random: &mut Random) {
    let width = (1usize << random.below(4)).min(data.len());
    let at = random.below(data.len() - width + 1);
    data[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

/// `input` with one to eight changes; `other` lends bytes to some of them.
pub fn mutate(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut data = input.to_vec();
    for _ in 0..1 + random.below(8) {
        let at = random.below(data.len() + 1);
        let end = at + random.below(data.len() - at + 1).min(32);
        match random.below(if data.is_empty() { 2 } else { 8 }) {
            0 => data
                .splice(at..at, (0..1 + random.below(16)).map(|_| random.next() as u8))
                .for_each(drop),
            1 => {
                let from = random.below(other.len() + 1);
                let to = from + random.below(other.len() - from + 1);
                data.splice(at..end, other[from..to].iter().copied())
                    .for_each(drop);
            }
            2 => drop(data.drain(at..end)),
            3 => {
                let block = data[at..end].to_vec();
                data.splice(at..at, block).for_each(drop);
            }
            4 | 5 => overwrite(&mut data, INTERESTING[random.below(INTERESTING.len())], random),
            6 => {
                let bit = random.below(8 * data.len());
                data[bit / 8] ^= 1 << (bit % 8);
            }
            _ => {
                let value = random.next() as i64;
                overwrite(&mut data, value, random);
            }
        }
        data.truncate(MAX_LEN);
    }
    data
}
