//! Integers that stand for enums: the known ones are taken, every other is refused by value.

use crate::bytes::Bytes;
use magi_attn::types::{DType, MaskType, Status};

const DTYPE_BYTES: [usize; 10] = [8, 4, 2, 2, 8, 4, 2, 1, 1, 1];
const MASK_TYPES: i32 = 4;

/// Reads 32-bit integers while there are any.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    while !bytes.is_empty() {
        let value = bytes.i32();
        match (DType::from_i32(value), usize::try_from(value)) {
            (Ok(dtype), Ok(index)) => {
                assert_eq!(dtype as i32, value);
                assert_eq!(dtype.size(), DTYPE_BYTES[index]);
            }
            (Ok(dtype), Err(_)) => panic!("{value} was taken for {dtype:?}"),
            (Err(error), index) => {
                assert!(index.is_err() || index.unwrap() >= DTYPE_BYTES.len());
                assert_eq!(error.status, Status::InvalidEnum);
                assert!(error.message.contains(&value.to_string()));
            }
        }
        match MaskType::from_i32(value) {
            Ok(mask_type) => assert_eq!(mask_type as i32, value),
            Err(error) => {
                assert!(!(0..MASK_TYPES).contains(&value));
                assert_eq!(error.status, Status::InvalidEnum);
            }
        }
    }
}
