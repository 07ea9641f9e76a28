//! What happens to one row of scores between two products.

use super::exp::{exp, tanh};
use super::product::Bounds;
use super::vector::Vector;

/// Running softmax of a row: contributions so far are `sum * exp(max)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    /// Largest logit so far; -inf before the first.
    pub max: f64,
    /// Sum of `exp(logit - max)`.
    pub sum: f64,
}

/// Elements `[lo, hi)` widened to whole vectors.
#[inline(always)]
fn widen<V: Vector>(b: Bounds) -> (usize, usize) {
    let lo = b.lo as usize / V::LANES * V::LANES;
    (lo, (b.hi as usize).next_multiple_of(V::LANES))
}

/// Turns logits into `exp(logit - max)` in place, zero outside the bounds, and updates `state`.
///
/// Returns the factor for what was accumulated before, and the largest logit of this row. `cap` 0 is off.
///
/// # Safety
/// The processor has the instructions of `V`; `s.len()` is a multiple of 8 and at least the bounds.
#[inline(always)]
pub(super) unsafe fn softmax<V: Vector>(
    s: &mut [f64],
    bounds: Bounds,
    cap: f64,
    state: &mut Running,
) -> (f64, f64) {
    let (lo, hi) = (bounds.lo as usize, bounds.hi as usize);
    if lo >= hi {
        s.fill(0.0);
        return (1.0, f64::NEG_INFINITY);
    }
    let (first, last) = widen::<V>(bounds);
    // SAFETY: [first, last) lies inside `s`, whose length is a multiple of every vector's.
    unsafe {
        if cap != 0.0 {
            for at in (first..last).step_by(V::LANES) {
                let at = s.as_mut_ptr().add(at);
                tanh(V::load(at)).0.mul(V::splat(cap)).store(at);
            }
        }
        // Cells between the bounds and the ends of the first and last vector: their exponential is exactly 0.
        s[first..lo].fill(f64::NEG_INFINITY);
        s[hi..last].fill(f64::NEG_INFINITY);
        let mut top = V::splat(f64::NEG_INFINITY);
        for at in (first..last).step_by(V::LANES) {
            top = V::load(s.as_ptr().add(at)).max(top);
        }
        let row_max = lanes(top).fold(f64::NEG_INFINITY, f64::max);
        if row_max == f64::NEG_INFINITY {
            // Either every logit is -inf, which weighs nothing, or some are NaN, which must show.
            let nan = s[lo..hi].iter().any(|x| x.is_nan());
            s.fill(0.0);
            if nan {
                state.sum = f64::NAN;
                return (f64::NAN, row_max);
            }
            return (1.0, row_max);
        }
        let max = state.max.max(row_max);
        let factor = if max == state.max {
            1.0
        } else {
            (state.max - max).exp()
        };
        let (shift, mut sum) = (V::splat(max), V::splat(0.0));
        for at in (first..last).step_by(V::LANES) {
            let at = s.as_mut_ptr().add(at);
            let p = exp(V::load(at).sub(shift));
            sum = sum.add(p);
            p.store(at);
        }
        s[..first].fill(0.0);
        s[last..].fill(0.0);
        state.sum = state.sum * factor + lanes(sum).sum::<f64>();
        state.max = max;
        (factor, row_max)
    }
}

/// The lanes of `v`; a narrower vector is completed by repeating a lane for maxima, so it is returned as a slice.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn lanes<V: Vector>(v: V) -> Lanes {
    let mut all = [0.0; 8];
    // SAFETY: a vector has at most 8 lanes.
    unsafe { v.store(all.as_mut_ptr()) };
    all.into_iter().take(V::LANES)
}

/// Lanes in ascending order.
type Lanes = std::iter::Take<std::array::IntoIter<f64, 8>>;

/// Multiplies a row by `factor`.
///
/// # Safety
/// The processor has the instructions of `V`; `x.len()` is a multiple of 8.
#[inline(always)]
pub(super) unsafe fn scale<V: Vector>(x: &mut [f64], factor: f64) {
    for at in (0..x.len()).step_by(V::LANES) {
        // SAFETY: `at` is a multiple of LANES below the length.
        unsafe {
            let at = x.as_mut_ptr().add(at);
            V::load(at).mul(V::splat(factor)).store(at);
        }
    }
}

/// lse and delta of the queries: of the row (one element each) or of every column.
pub(super) struct Queries<'a> {
    /// lse, +inf for queries that see nothing, so that their probabilities are 0.
    pub lse: &'a [f64],
    /// Sum of `out * dout`.
    pub delta: &'a [f64],
}

/// Turns logits `s` and `dp = dout . v` into the gradient of the logits (in `s`) and the probabilities (in `dp`),
/// both zero outside the bounds.
///
/// # Safety
/// The processor has the instructions of `V`; `s` and `dp` are equally long, a multiple of 8, and at least the bounds;
/// so are lse and delta with `COLUMNS`; else they have one element.
#[inline(always)]
pub(super) unsafe fn gradient<V: Vector, const COLUMNS: bool>(
    s: &mut [f64],
    dp: &mut [f64],
    queries: &Queries<'_>,
    bounds: Bounds,
    cap: f64,
) {
    let (lo, hi) = (bounds.lo as usize, bounds.hi as usize);
    if lo >= hi {
        s.fill(0.0);
        dp.fill(0.0);
        return;
    }
    let (first, last) = widen::<V>(bounds);
    for at in (first..last).step_by(V::LANES) {
        // SAFETY: `at` is a multiple of LANES below the lengths.
        unsafe {
            let (s, dp) = (s.as_mut_ptr().add(at), dp.as_mut_ptr().add(at));
            let (lse, delta) = if COLUMNS {
                (
                    V::load(queries.lse.as_ptr().add(at)),
                    V::load(queries.delta.as_ptr().add(at)),
                )
            } else {
                (V::splat(queries.lse[0]), V::splat(queries.delta[0]))
            };
            let slope_of = V::load(dp).sub(delta);
            let (p, ds) = if cap != 0.0 {
                let (t, slope) = tanh(V::load(s));
                let p = exp(t.mul(V::splat(cap)).sub(lse));
                (p, p.mul(slope_of).mul(slope))
            } else {
                let p = exp(V::load(s).sub(lse));
                (p, p.mul(slope_of))
            };
            ds.store(s);
            p.store(dp);
        }
    }
    for x in [s, dp] {
        x[..lo].fill(0.0);
        x[hi..].fill(0.0);
    }
}
