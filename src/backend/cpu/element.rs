//! Elements of the attention dtypes, to and from f64.

use crate::types::DType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The f32 nearest to `x` among those with an odd last bit, unless `x` is an f32.
///
/// Rounding it again to 8 or 11 bits gives what rounding `x` once would: the odd bit remembers that something was cut.
fn to_f32_odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || !near.is_finite() || near.to_bits() & 1 == 1 {
        return near;
    }
    if back < x {
        near.next_up()
    } else {
        near.next_down()
    }
}

/// Reads one element.
///
/// # Safety
/// `at` is readable for an element of `dtype`, which is an attention dtype; no alignment is needed.
pub(super) unsafe fn load(dtype: DType, at: *const u8) -> f64 {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F64 => at.cast::<f64>().read_unaligned(),
            DType::F32 => f64::from(at.cast::<f32>().read_unaligned()),
            DType::Bf16 => at.cast::<bf16>().read_unaligned().to_f64(),
            _ => at.cast::<f16>().read_unaligned().to_f64(),
        }
    }
}

/// Writes one element, rounded to nearest even.
///
/// # Safety
/// As `load`, for writing.
pub(super) unsafe fn store(dtype: DType, at: *mut u8, x: f64) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F64 => at.cast::<f64>().write_unaligned(x),
            DType::F32 => at.cast::<f32>().write_unaligned(x as f32),
            DType::Bf16 => at.cast::<bf16>().write_unaligned(bf16::from_f32(to_f32_odd(x))),
            _ => at.cast::<f16>().write_unaligned(f16::from_f32(to_f32_odd(x))),
        }
    }
}

/// Reads `to.len()` consecutive elements.
///
/// # Safety
/// As `load`, for all of them.
pub(super) unsafe fn load_row(dtype: DType, at: *const u8, to: &mut [f64]) {
    // SAFETY: the caller's promise; index i is below the length.
    unsafe {
        match dtype {
            DType::F64 => std::ptr::copy_nonoverlapping(at, to.as_mut_ptr().cast(), to.len() * 8),
            DType::F32 => {
                for (i, x) in to.iter_mut().enumerate() {
                    *x = f64::from(at.cast::<f32>().add(i).read_unaligned());
                }
            }
            DType::Bf16 => {
                for (i, x) in to.iter_mut().enumerate() {
                    let bits = u32::from(at.cast::<u16>().add(i).read_unaligned());
                    *x = f64::from(f32::from_bits(bits << 16));
                }
            }
            _ => {
                // In pieces, so that the conversion can use the processor's own instruction.
                let (mut halves, mut singles) = ([f16::ZERO; 64], [0f32; 64]);
                for (n, piece) in to.chunks_mut(64).enumerate() {
                    let (halves, singles) = (&mut halves[..piece.len()], &mut singles[..piece.len()]);
                    let from = at.add(n * 128);
                    std::ptr::copy_nonoverlapping(from, halves.as_mut_ptr().cast(), piece.len() * 2);
                    halves.convert_to_f32_slice(singles);
                    for (x, s) in piece.iter_mut().zip(singles.iter()) {
                        *x = f64::from(*s);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(dtype: DType, x: f64) -> f64 {
        let mut bytes = [0u8; 8];
        // SAFETY: eight bytes hold any element.
        unsafe {
            store(dtype, bytes.as_mut_ptr(), x);
            load(dtype, bytes.as_ptr())
        }
    }

    #[test]
    fn rounding_is_to_nearest_even_and_happens_once() {
        for (dtype, bits) in [(DType::Bf16, 7), (DType::F16, 10), (DType::F32, 23)] {
            let ulp = 0.5f64.powi(bits);
            let tiny = f64::EPSILON;
            for sign in [1.0, -1.0] {
                assert_eq!(
                    stored(dtype, sign * (1.0 + ulp / 2.0)),
                    sign,
                    "a tie goes to the even"
                );
                assert_eq!(stored(dtype, sign * (1.0 + 1.5 * ulp)), sign * (1.0 + 2.0 * ulp));
                assert_eq!(stored(dtype, sign * (1.0 + ulp / 2.0 + tiny)), sign * (1.0 + ulp));
                assert_eq!(stored(dtype, sign * (1.0 + 1.5 * ulp - tiny)), sign * (1.0 + ulp));
                assert_eq!(stored(dtype, sign * 1e300), sign * f64::INFINITY);
            }
            assert!(stored(dtype, f64::NAN).is_nan());
        }
        // Subnormal halves: the tie between 0 and the least one.
        let least = 2f64.powi(-24);
        assert_eq!(stored(DType::F16, least / 2.0), 0.0);
        assert_eq!(stored(DType::F16, least / 2.0 * (1.0 + f64::EPSILON)), least);
    }

    #[test]
    fn rows_and_elements_agree() {
        for dtype in [DType::F64, DType::F32, DType::Bf16, DType::F16] {
            let mut bytes = vec![0u8; 150 * dtype.size()];
            let mut row = vec![0.0; 150];
            // SAFETY: 150 elements fit in the bytes.
            unsafe {
                for i in 0..150 {
                    store(
                        dtype,
                        bytes.as_mut_ptr().add(i * dtype.size()),
                        (i as f64 - 70.0) * 1.37,
                    );
                }
                load_row(dtype, bytes.as_ptr(), &mut row);
                for (i, x) in row.iter().enumerate() {
                    assert_eq!(*x, load(dtype, bytes.as_ptr().add(i * dtype.size())));
                }
            }
        }
    }
}
