//! A 128-bit FNV-1a digest: the same on every machine and in every version. Used by build.rs too, so nothing of this
//! crate is named here. It recognises files and finds damage; it is no defence against forgery.

/// A digest under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u128);

impl Default for Digest {
    fn default() -> Self {
        Digest(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Digest {
    /// Takes in a field; its length counts too, so that fields cannot run into each other.
    #[must_use]
    pub fn field(self, bytes: &[u8]) -> Digest {
        self.bytes(&(bytes.len() as u64).to_le_bytes()).bytes(bytes)
    }

    fn bytes(self, bytes: &[u8]) -> Digest {
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let step = |state: u128, &byte: &u8| (state ^ u128::from(byte)).wrapping_mul(PRIME);
        Digest(bytes.iter().fold(self.0, step))
    }

    /// The digest of what was taken in so far.
    pub fn value(self) -> u128 {
        self.0
    }

    /// The same, as 32 hexadecimal digits.
    pub fn hex(self) -> String {
        format!("{:032x}", self.0)
    }
}
