//! Tensor maps: what the tensor memory accelerator copies by.

use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType_enum as DataType, CUtensorMapFloatOOBfill_enum as Fill,
    CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as L2,
    CUtensorMapSwizzle_enum as Pattern,
};

use super::driver::check;
use super::gpu::Current;
use crate::types::{DType, Error, Result, Status};

/// How 16-byte pieces of a row are permuted in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Inside 32 bytes.
    B32,
    /// Inside 64 bytes.
    B64,
    /// Inside 128 bytes.
    B128,
}

/// How much the level-2 cache fetches at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// What is asked for.
    None,
    /// 64 bytes.
    B64,
    /// 128 bytes.
    B128,
    /// 256 bytes.
    B256,
}

/// A tensor in global memory and the box that is copied at a time. Dimension 0 is the innermost, of stride one element.
#[derive(Clone, Copy, Debug)]
pub struct Tiled<'a> {
    /// Element type.
    pub dtype: DType,
    /// First element, aligned to 16 bytes.
    pub data: *mut u8,
    /// Extent of each dimension, one to five, each at most 2^32. What a copy reads beyond them arrives as zeros.
    pub dims: &'a [u64],
    /// Bytes from one index to the next in dimensions 1 and up: multiples of 16, below 2^40.
    pub strides: &'a [u64],
    /// Extent of the box in each dimension, at most 256.
    pub extent: &'a [u32],
    /// Permutation in shared memory.
    pub swizzle: Swizzle,
    /// What the cache fetches.
    pub promotion: Promotion,
}

/// A tensor map, handed to a kernel as a `__grid_constant__` parameter: 128 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct TensorMap(CUtensorMap);

impl TensorMap {
    /// Encodes the map. Only computes: allowed while a stream is captured. The driver refuses on a thread without a current
    /// context, hence the guard. `Status::InvalidStride` says which rule of the hardware the tensor breaks.
    pub fn tiled(_: &Current<'_>, of: &Tiled<'_>) -> Result<TensorMap> {
        let dtype = data_type(of.dtype)?;
        expect_mappable(of)?;
        let mut map = CUtensorMap { opaque: [0; 16] };
        let steps = [1u32; 5];
        // SAFETY: a context is current; the arrays have as many elements as the rank says, or one fewer for strides, which was checked; the
        // tensor's memory is not touched.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                dtype,
                of.dims.len() as u32,
                of.data.cast(),
                of.dims.as_ptr(),
                of.strides.as_ptr(),
                of.extent.as_ptr(),
                steps.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                pattern(of.swizzle),
                promotion(of.promotion),
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(code, "cuTensorMapEncodeTiled")?;
        Ok(TensorMap(map))
    }
}

/// What the driver would refuse without saying why.
fn expect_mappable(of: &Tiled<'_>) -> Result<()> {
    let rank = of.dims.len();
    if !(1..=5).contains(&rank) || of.strides.len() + 1 != rank || of.extent.len() != rank {
        return Err(Error::internal(format!(
            "a tensor map of {rank} dimensions, {} strides and {} extents",
            of.strides.len(),
            of.extent.len()
        )));
    }
    let refuse = |message: String| Err(Error::new(Status::InvalidStride, message));
    if !(of.data as usize).is_multiple_of(16) {
        return refuse(format!("{:p} is not aligned to 16 bytes", of.data));
    }
    if let Some(stride) = of
        .strides
        .iter()
        .find(|s| !s.is_multiple_of(16) || **s >= 1 << 40)
    {
        return refuse(format!(
            "a stride of {stride} bytes; it must be a multiple of 16 below 2^40"
        ));
    }
    if let Some(n) = of.dims.iter().find(|n| !(1..=1 << 32).contains(*n)) {
        return refuse(format!("a dimension of {n}; it must be 1 to 2^32"));
    }
    let row = u64::from(of.extent[0]) * of.dtype.size() as u64;
    let most = match of.swizzle {
        Swizzle::None => u64::MAX,
        Swizzle::B32 => 32,
        Swizzle::B64 => 64,
        Swizzle::B128 => 128,
    };
    if of.extent.iter().any(|n| !(1..=256).contains(n)) || row > most || !row.is_multiple_of(16) {
        return Err(Error::internal(format!(
            "a box of {:?} with rows of {row} bytes and {:?}",
            of.extent, of.swizzle
        )));
    }
    Ok(())
}

fn data_type(dtype: DType) -> Result<DataType> {
    Ok(match dtype {
        DType::F64 => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        DType::F32 => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::Bf16 => DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::I64 => DataType::CU_TENSOR_MAP_DATA_TYPE_INT64,
        DType::I32 => DataType::CU_TENSOR_MAP_DATA_TYPE_INT32,
        DType::U8 | DType::I8 | DType::Bool => DataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        DType::I16 => DataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
    })
}

fn pattern(swizzle: Swizzle) -> Pattern {
    match swizzle {
        Swizzle::None => Pattern::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => Pattern::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => Pattern::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => Pattern::CU_TENSOR_MAP_SWIZZLE_128B,
    }
}

fn promotion(promotion: Promotion) -> L2 {
    match promotion {
        Promotion::None => L2::CU_TENSOR_MAP_L2_PROMOTION_NONE,
        Promotion::B64 => L2::CU_TENSOR_MAP_L2_PROMOTION_L2_64B,
        Promotion::B128 => L2::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        Promotion::B256 => L2::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Tiled<'static> = Tiled {
        dtype: DType::Bf16,
        data: 0x1000 as *mut u8,
        dims: &[64, 1000, 2, 8],
        strides: &[2048, 128, 256],
        extent: &[64, 128, 2, 1],
        swizzle: Swizzle::B128,
        promotion: Promotion::B256,
    };

    #[test]
    fn rules_of_the_hardware_are_told_apart() {
        assert_eq!(size_of::<TensorMap>(), 128);
        assert!(align_of::<TensorMap>() >= 64);
        expect_mappable(&GOOD).unwrap();
        let bad = [
            (
                Tiled {
                    data: 0x1008 as *mut u8,
                    ..GOOD
                },
                "0x1008",
            ),
            (
                Tiled {
                    strides: &[2040, 128, 256],
                    ..GOOD
                },
                "2040",
            ),
            (
                Tiled {
                    strides: &[2048, 1 << 40, 256],
                    ..GOOD
                },
                "1099511627776",
            ),
            (
                Tiled {
                    dims: &[64, 0, 2, 8],
                    ..GOOD
                },
                "a dimension of 0",
            ),
        ];
        for (tiled, text) in bad {
            let error = expect_mappable(&tiled).unwrap_err();
            assert_eq!(error.status, Status::InvalidStride);
            assert!(error.message.contains(text), "{error}");
        }
        for tiled in [
            Tiled {
                extent: &[128, 128, 2, 1],
                ..GOOD
            },
            Tiled {
                extent: &[64, 257, 2, 1],
                ..GOOD
            },
            Tiled {
                strides: &[2048, 128],
                ..GOOD
            },
        ] {
            assert_eq!(expect_mappable(&tiled).unwrap_err().status, Status::Internal);
        }
    }
}
