//! Vectors of f64 of the width that the processor has, behind one trait, so that each kernel is written once.

/// `LANES` doubles. Every kernel over a `Vector` is inlined into a function that enables the vector's instructions.
///
/// # Safety
/// All functions: the processor has the implementation's instructions. `load` and `store`: `LANES` doubles at `at`
/// are readable, respectively writable; no alignment is needed.
pub(super) trait Vector: Copy {
    /// Doubles in one vector: 4 or 8.
    const LANES: usize;
    /// Reads `LANES` doubles.
    unsafe fn load(at: *const f64) -> Self;
    /// Writes `LANES` doubles.
    unsafe fn store(self, at: *mut f64);
    /// `x` in every lane.
    unsafe fn splat(x: f64) -> Self;
    /// `self + b`
    unsafe fn add(self, b: Self) -> Self;
    /// `self - b`
    unsafe fn sub(self, b: Self) -> Self;
    /// `self * b`
    unsafe fn mul(self, b: Self) -> Self;
    /// `self / b`
    unsafe fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once where the processor can.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self > b ? self : b`, so `b` where either is NaN.
    unsafe fn max(self, b: Self) -> Self;
    /// `self >= b ? yes : no`, so `no` where either is NaN.
    unsafe fn select_ge(self, b: Self, yes: Self, no: Self) -> Self;
    /// Adds the low 12 bits of `n`, as an integer, to the exponent.
    unsafe fn add_exponent(self, n: Self) -> Self;
}

/// Four doubles on any processor.
#[derive(Clone, Copy)]
pub(super) struct Portable([f64; 4]);

impl Portable {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Vector for Portable {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn load(at: *const f64) -> Self {
        // SAFETY: the caller's promise; an array of doubles has the layout of the doubles.
        unsafe { Portable(at.cast::<[f64; 4]>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f64) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[f64; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: f64) -> Self {
        Portable([x; 4])
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.zip(b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.zip(b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.zip(b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.zip(b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // Two roundings: f64::mul_add is a library call where the instruction may be missing.
        self.zip(b, |x, y| x * y).zip(c, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.zip(b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn select_ge(self, b: Self, yes: Self, no: Self) -> Self {
        Portable(std::array::from_fn(|i| {
            if self.0[i] >= b.0[i] { yes.0[i] } else { no.0[i] }
        }))
    }
    #[inline(always)]
    unsafe fn add_exponent(self, n: Self) -> Self {
        self.zip(n, |x, n| {
            f64::from_bits(x.to_bits().wrapping_add(n.to_bits() << 52))
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    macro_rules! vector {
        ($type:ty, $lanes:literal, $(fn $name:ident($($arg:ident: $arg_type:ty),*) $(-> $result:ty)? = $body:expr;)*) => {
            impl Vector for $type {
                const LANES: usize = $lanes;
                $(#[inline(always)]
                unsafe fn $name($($arg: $arg_type),*) $(-> $result)? {
                    // SAFETY: the trait's promise: the processor has the instruction and the memory is there.
                    unsafe { $body }
                })*
            }
        };
    }

    vector! {
        __m256d, 4,
        fn load(at: *const f64) -> Self = _mm256_loadu_pd(at);
        fn store(self: Self, at: *mut f64) = _mm256_storeu_pd(at, self);
        fn splat(x: f64) -> Self = _mm256_set1_pd(x);
        fn add(self: Self, b: Self) -> Self = _mm256_add_pd(self, b);
        fn sub(self: Self, b: Self) -> Self = _mm256_sub_pd(self, b);
        fn mul(self: Self, b: Self) -> Self = _mm256_mul_pd(self, b);
        fn div(self: Self, b: Self) -> Self = _mm256_div_pd(self, b);
        fn mul_add(self: Self, b: Self, c: Self) -> Self = _mm256_fmadd_pd(self, b, c);
        fn max(self: Self, b: Self) -> Self = _mm256_max_pd(self, b);
        fn select_ge(self: Self, b: Self, yes: Self, no: Self) -> Self =
            _mm256_blendv_pd(no, yes, _mm256_cmp_pd::<_CMP_GE_OQ>(self, b));
        fn add_exponent(self: Self, n: Self) -> Self = _mm256_castsi256_pd(_mm256_add_epi64(
            _mm256_castpd_si256(self),
            _mm256_slli_epi64::<52>(_mm256_castpd_si256(n)),
        ));
    }

    vector! {
        __m512d, 8,
        fn load(at: *const f64) -> Self = _mm512_loadu_pd(at);
        fn store(self: Self, at: *mut f64) = _mm512_storeu_pd(at, self);
        fn splat(x: f64) -> Self = _mm512_set1_pd(x);
        fn add(self: Self, b: Self) -> Self = _mm512_add_pd(self, b);
        fn sub(self: Self, b: Self) -> Self = _mm512_sub_pd(self, b);
        fn mul(self: Self, b: Self) -> Self = _mm512_mul_pd(self, b);
        fn div(self: Self, b: Self) -> Self = _mm512_div_pd(self, b);
        fn mul_add(self: Self, b: Self, c: Self) -> Self = _mm512_fmadd_pd(self, b, c);
        fn max(self: Self, b: Self) -> Self = _mm512_max_pd(self, b);
        fn select_ge(self: Self, b: Self, yes: Self, no: Self) -> Self =
            _mm512_mask_blend_pd(_mm512_cmp_pd_mask::<_CMP_GE_OQ>(self, b), no, yes);
        fn add_exponent(self: Self, n: Self) -> Self = _mm512_castsi512_pd(_mm512_add_epi64(
            _mm512_castpd_si512(self),
            _mm512_slli_epi64::<52>(_mm512_castpd_si512(n)),
        ));
    }
}
