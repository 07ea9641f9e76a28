//! Element types.

use super::{Error, Result, Status};

/// Element type of a tensor. The first four can be attended over; all of them can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DType {
    /// IEEE double.
    F64 = 0,
    /// IEEE single.
    F32 = 1,
    /// bfloat16.
    Bf16 = 2,
    /// IEEE half.
    F16 = 3,
    /// Signed 64-bit.
    I64 = 4,
    /// Signed 32-bit.
    I32 = 5,
    /// Signed 16-bit.
    I16 = 6,
    /// Signed 8-bit.
    I8 = 7,
    /// Unsigned 8-bit, and the bytes of any 1-byte type.
    U8 = 8,
    /// One byte, 0 or 1.
    Bool = 9,
}

impl DType {
    /// The dtype numbered `value` in the ABI.
    pub fn from_i32(value: i32) -> Result<DType> {
        use DType::*;
        [F64, F32, Bf16, F16, I64, I32, I16, I8, U8, Bool]
            .get(usize::try_from(value).unwrap_or(usize::MAX))
            .copied()
            .ok_or_else(|| {
                Error::new(
                    Status::InvalidEnum,
                    format!("dtype is {value}, which is no magi_dtype (0 to 9)"),
                )
            })
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 | DType::I16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether attention can be computed over tensors of this type.
    pub const fn is_attention(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::Bf16 | DType::F16)
    }

    /// The accumulator type: f64 for f64 tensors, f32 for every other. Type of lse, of running outputs
    /// between stages, of gradient accumulators and of dsink.
    pub const fn accumulator(self) -> DType {
        match self {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }

    /// Name as messages print it.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I16 => "i16",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }
}
