//! exp and tanh over vectors, to about one unit in the last place.

use super::vector::Vector;

/// Below this exp is 0: results smaller than the least normal double are flushed.
const LOWEST: f64 = -708.0;
/// From here on exp is infinite.
const HIGHEST: f64 = 709.782_712_893_384;
/// Adding it leaves the rounded integer in the low bits: 1.5 x 2^52.
const MAGIC: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts; the first has 32 trailing zero bits, so that its product with any exponent is exact.
const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// 1/n! from n = 13 down to n = 1. The remainder for |r| <= ln(2)/2 is r^14/14! < 5e-18.
const TAYLOR: [f64; 13] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
];

/// `(n with its integer in the low bits, exp(r) - 1)` where `x = n ln 2 + r`, for x in `[LOWEST, HIGHEST]` or NaN.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn reduce<V: Vector>(x: V) -> (V, V) {
    // SAFETY: arithmetic only; the caller's promise covers the instructions.
    unsafe {
        let n = x.mul_add(V::splat(std::f64::consts::LOG2_E), V::splat(MAGIC));
        let count = n.sub(V::splat(MAGIC));
        let r = count.mul_add(V::splat(-LN2_HIGH), x);
        let r = count.mul_add(V::splat(-LN2_LOW), r);
        let mut p = V::splat(TAYLOR[0]);
        for &c in &TAYLOR[1..] {
            p = p.mul_add(r, V::splat(c));
        }
        (n, p.mul(r))
    }
}

/// exp(x): 0 below -708, infinite from 709.78, NaN for NaN.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: as for `reduce`.
    unsafe {
        let (n, p) = reduce(x);
        let y = V::splat(1.0).add(p).add_exponent(n);
        let y = x.select_ge(V::splat(HIGHEST), V::splat(f64::INFINITY), y);
        // Not at least the lowest: either too small or NaN, and NaN is returned as it came.
        let small = V::splat(LOWEST).select_ge(x, V::splat(0.0), x);
        x.select_ge(V::splat(LOWEST), y, small)
    }
}

/// `(tanh(y), 1 - tanh(y)^2)`, both to relative accuracy: from e - 1 with e = exp(-2|y|), so that nothing cancels.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn tanh<V: Vector>(y: V) -> (V, V) {
    // SAFETY: as for `reduce`.
    unsafe {
        let (zero, one, two) = (V::splat(0.0), V::splat(1.0), V::splat(2.0));
        let negative = zero.sub(y);
        let x = y.select_ge(zero, negative, y).mul(two);
        // Inside the first interval of the reduction n is 0 and p is e - 1 itself.
        let (_, p) = reduce(x);
        let e = exp(x);
        let less_one = x.select_ge(V::splat(-0.34), p, e.sub(one));
        let sum = two.add(less_one);
        let t = zero.sub(less_one).div(sum);
        let slope = V::splat(4.0).mul(e).div(sum.mul(sum));
        (y.select_ge(zero, t, zero.sub(t)), slope)
    }
}
