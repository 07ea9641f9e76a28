//! A cubin as it is kept on disk: a magic number, its length and its digest, then the cubin. Used by build.rs too, so nothing
//! of this crate but the digest is named here.

use super::digest::Digest;

const MAGIC: &[u8; 8] = b"MAGICUB1";
/// Magic number, length and digest.
const HEAD: usize = 8 + 8 + 16;

fn head(cubin: &[u8]) -> Vec<u8> {
    let digest = Digest::default().field(cubin).value();
    let length = cubin.len() as u64;
    [&MAGIC[..], &length.to_le_bytes()[..], &digest.to_le_bytes()[..]].concat()
}

/// The bytes of a file that keeps `cubin`.
pub fn pack(cubin: &[u8]) -> Vec<u8> {
    [&head(cubin)[..], cubin].concat()
}

/// The cubin in a file's bytes; `None` when they are damaged.
pub fn unpack(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let cubin = bytes.get(HEAD..)?;
    if bytes[..HEAD] != head(cubin)[..] {
        return None;
    }
    bytes.drain(..HEAD);
    Some(bytes)
}
