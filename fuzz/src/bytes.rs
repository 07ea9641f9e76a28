//! Turns the bytes of an input into values, so that a target reads like a recipe.

/// Reads from the front; gives zeros when nothing is left.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// Starts at the first byte of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Bytes(data)
    }

    /// Whether every byte was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let n = N.min(self.0.len());
        out[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        out
    }

    /// Any byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Any 32-bit integer.
    pub fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.array())
    }

    /// Any 64-bit integer.
    pub fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.array())
    }

    /// A number below `n`, which is 1 to 256.
    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.u8()) % n
    }

    /// Mostly 0 to 63, in one byte; now and then any 32-bit or 64-bit integer.
    pub fn number(&mut self) -> i64 {
        match self.u8() {
            small @ 0..=247 => i64::from(small & 63),
            248..=251 => i64::from(self.i32()),
            _ => self.i64(),
        }
    }

    /// As `number`, cut to 32 bits.
    pub fn small_number(&mut self) -> i32 {
        self.number() as i32
    }

    /// Mostly `usual`; about once in eight times any number instead.
    pub fn mostly(&mut self, usual: i64) -> i64 {
        if self.u8() & 7 == 7 { self.number() } else { usual }
    }
}
