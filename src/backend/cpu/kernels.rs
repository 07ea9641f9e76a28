//! The kernels compiled for each kind of processor, and the choice between them.

use super::product::{Bounds, Product};
use super::rows::{Queries, Running};
use std::sync::OnceLock;

/// One compiled set: the generic functions of the same name in `product` and `rows`.
pub(super) struct Kernels {
    scores: unsafe fn(&mut Product<'_>),
    accumulate: unsafe fn(&mut Product<'_>, bool),
    softmax: unsafe fn(&mut [f64], Bounds, f64, &mut Running) -> (f64, f64),
    scale: unsafe fn(&mut [f64], f64),
    gradient_row: unsafe fn(&mut [f64], &mut [f64], &Queries<'_>, Bounds, f64),
    gradient_columns: unsafe fn(&mut [f64], &mut [f64], &Queries<'_>, Bounds, f64),
}

/// A module that holds the generic kernels compiled with the named features. `$rows` is the height of a tile: as many
/// accumulators (two vectors a row) as leave registers for the operands.
macro_rules! kernels {
    ($module:ident, $vector:ty, $rows:literal, $(#[$feature:meta])?) => {
        mod $module {
            use super::super::{product, rows};
            use super::{Bounds, Kernels, Product, Queries, Running};

            // SAFETY (of all blocks below): whoever calls made the promises of the generic function, among them that
            // the processor has the features.
            $(#[$feature])?
            unsafe fn scores(p: &mut Product<'_>) {
                // SAFETY: as above.
                unsafe { product::scores::<$vector, $rows>(p) }
            }
            $(#[$feature])?
            unsafe fn accumulate(p: &mut Product<'_>, exact: bool) {
                // SAFETY: as above.
                unsafe { product::accumulate::<$vector, $rows>(p, exact) }
            }
            $(#[$feature])?
            unsafe fn softmax(s: &mut [f64], b: Bounds, cap: f64, state: &mut Running) -> (f64, f64) {
                // SAFETY: as above.
                unsafe { rows::softmax::<$vector>(s, b, cap, state) }
            }
            $(#[$feature])?
            unsafe fn scale(x: &mut [f64], factor: f64) {
                // SAFETY: as above.
                unsafe { rows::scale::<$vector>(x, factor) }
            }
            $(#[$feature])?
            unsafe fn gradient_row(s: &mut [f64], dp: &mut [f64], q: &Queries<'_>, b: Bounds, cap: f64) {
                // SAFETY: as above.
                unsafe { rows::gradient::<$vector, false>(s, dp, q, b, cap) }
            }
            $(#[$feature])?
            unsafe fn gradient_columns(s: &mut [f64], dp: &mut [f64], q: &Queries<'_>, b: Bounds, cap: f64) {
                // SAFETY: as above.
                unsafe { rows::gradient::<$vector, true>(s, dp, q, b, cap) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                scores,
                accumulate,
                softmax,
                scale,
                gradient_row,
                gradient_columns,
            };
        }
    };
}

kernels!(portable, super::super::vector::Portable, 2,);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, std::arch::x86_64::__m256d, 6, #[target_feature(enable = "avx2,fma")]);
#[cfg(target_arch = "x86_64")]
kernels!(avx512, std::arch::x86_64::__m512d, 8, #[target_feature(enable = "avx512f")]);

impl Kernels {
    /// Every set that this processor can run, the fastest first.
    fn available() -> Vec<&'static Kernels> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                all.push(&avx512::KERNELS);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(&avx2::KERNELS);
            }
        }
        all.push(&portable::KERNELS);
        all
    }

    /// The fastest set.
    pub fn best() -> &'static Kernels {
        static BEST: OnceLock<&'static Kernels> = OnceLock::new();
        BEST.get_or_init(|| Kernels::available()[0])
    }

    /// C = A B where the bounds (of columns) allow it to be seen.
    pub fn scores(&self, p: &mut Product<'_>) {
        assert!(p.fits() && p.bounds.iter().all(|b| b.hi as usize <= p.cols));
        // SAFETY: checked above; a set is only handed out when the processor has its features.
        unsafe { (self.scores)(p) }
    }

    /// C += A B over the bounds (of depth).
    pub fn accumulate(&self, p: &mut Product<'_>, exact: bool) {
        assert!(p.fits() && p.bounds.iter().all(|b| b.hi as usize <= p.depth));
        // SAFETY: as above.
        unsafe { (self.accumulate)(p, exact) }
    }

    /// Logits to weights; returns the factor of what came before and the largest logit.
    pub fn softmax(&self, s: &mut [f64], bounds: Bounds, cap: f64, state: &mut Running) -> (f64, f64) {
        assert!(s.len().is_multiple_of(8) && bounds.hi as usize <= s.len());
        // SAFETY: as above.
        unsafe { (self.softmax)(s, bounds, cap, state) }
    }

    /// `x *= factor`
    pub fn scale(&self, x: &mut [f64], factor: f64) {
        assert!(x.len().is_multiple_of(8));
        // SAFETY: as above.
        unsafe { (self.scale)(x, factor) }
    }

    /// Logits and `dout . v` of one query to logit gradients and probabilities.
    pub fn gradient_row(&self, s: &mut [f64], dp: &mut [f64], q: &Queries<'_>, bounds: Bounds, cap: f64) {
        assert!(s.len() == dp.len() && s.len().is_multiple_of(8) && bounds.hi as usize <= s.len());
        assert!(!q.lse.is_empty() && !q.delta.is_empty());
        // SAFETY: as above.
        unsafe { (self.gradient_row)(s, dp, q, bounds, cap) }
    }

    /// The same for one key, whose columns are queries.
    pub fn gradient_columns(&self, s: &mut [f64], dp: &mut [f64], q: &Queries<'_>, bounds: Bounds, cap: f64) {
        assert!(s.len() == dp.len() && s.len().is_multiple_of(8) && bounds.hi as usize <= s.len());
        assert!(q.lse.len() >= s.len() && q.delta.len() >= s.len());
        // SAFETY: as above.
        unsafe { (self.gradient_columns)(s, dp, q, bounds, cap) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// exp of every element, by way of the probabilities of queries with lse 0.
    fn exp(kernels: &Kernels, x: &mut [f64]) {
        let mut s = x.to_vec();
        s.resize(x.len().next_multiple_of(8), 0.0);
        let mut dp = vec![0.0; s.len()];
        let queries = Queries {
            lse: &[0.0],
            delta: &[0.0],
        };
        let bounds = Bounds {
            lo: 0,
            hi: x.len() as u32,
        };
        kernels.gradient_row(&mut s, &mut dp, &queries, bounds, 0.0);
        x.copy_from_slice(&dp[..x.len()]);
    }

    #[test]
    fn exp_agrees_with_the_library() {
        for kernels in Kernels::available() {
            let mut x: Vec<f64> = (0..200_001).map(|i| f64::from(i - 100_000) * 0.007_079).collect();
            x.extend((0..1000).map(|i| -f64::from(i) * 1e-9));
            let want: Vec<f64> = x.iter().map(|x| x.exp()).collect();
            exp(kernels, &mut x);
            for (got, want) in x.iter().zip(&want) {
                assert!(
                    (got - want).abs() <= 3e-16 * want || *want < 1e-307,
                    "{got} is not {want}"
                );
            }
            let mut edges = [
                f64::NEG_INFINITY,
                -1e9,
                -709.0,
                0.0,
                709.78,
                709.79,
                f64::INFINITY,
                f64::NAN,
                -0.0,
            ];
            exp(kernels, &mut edges);
            assert_eq!(&edges[..4], &[0.0, 0.0, 0.0, 1.0]);
            assert!((edges[4] / 709.78f64.exp() - 1.0).abs() < 1e-15);
            assert_eq!(&edges[5..7], &[f64::INFINITY; 2]);
            assert!(edges[7].is_nan() && edges[8] == 1.0);
        }
    }

    #[test]
    fn products_agree_with_plain_loops() {
        let value = |i: usize| ((i * 7919) % 1009) as f64 / 504.0 - 1.0;
        for kernels in Kernels::available() {
            for (rows, depth, cols) in [(1, 3, 8), (7, 16, 24), (13, 5, 40), (128, 9, 16)] {
                let a: Vec<f64> = (0..rows * depth).map(value).collect();
                let b: Vec<f64> = (0..depth * cols).map(|i| value(i + 31)).collect();
                let cell = |i: usize, j: usize, to: usize| -> f64 {
                    (0..to)
                        .map(|k| a[i * depth + k] * b[j / 8 * 8 * depth + k * 8 + j % 8])
                        .sum()
                };
                let mut c = vec![f64::NAN; rows * cols];
                let seen: Vec<_> = (0..rows)
                    .map(|i| Bounds {
                        lo: 1,
                        hi: (i % (cols + 1)) as u32,
                    })
                    .collect();
                let mut product = Product {
                    a: &a,
                    a_stride: depth,
                    b: &b,
                    depth,
                    c: &mut c,
                    cols,
                    bounds: &seen,
                };
                kernels.scores(&mut product);
                for (i, s) in seen.iter().enumerate() {
                    for j in s.lo as usize..s.hi as usize {
                        assert!((c[i * cols + j] - cell(i, j, depth)).abs() < 1e-13);
                    }
                }
                for exact in [false, true] {
                    let full = vec![
                        Bounds {
                            lo: 0,
                            hi: depth as u32
                        };
                        rows
                    ];
                    let mut c = vec![1.0; rows * cols];
                    let mut product = Product {
                        a: &a,
                        a_stride: depth,
                        b: &b,
                        depth,
                        c: &mut c,
                        cols,
                        bounds: &full,
                    };
                    kernels.accumulate(&mut product, exact);
                    for (at, got) in c.iter().enumerate() {
                        assert!((got - 1.0 - cell(at / cols, at % cols, depth)).abs() < 1e-13);
                    }
                }
            }
        }
    }

    #[test]
    fn a_capped_row_agrees_with_the_library() {
        for kernels in Kernels::available() {
            for cap in [0.01, 1.0, 30.0, 1e9] {
                let raw: Vec<f64> = (0..32).map(|i| f64::from(i - 16) * 3.7 / cap).collect();
                let mut s = raw.clone();
                let mut state = Running {
                    max: f64::NEG_INFINITY,
                    sum: 0.0,
                };
                let bounds = Bounds { lo: 3, hi: 30 };
                kernels.softmax(&mut s, bounds, cap, &mut state);
                let capped: Vec<f64> = raw.iter().map(|x| cap * x.tanh()).collect();
                let sum: f64 = capped[3..30].iter().map(|x| x.exp()).sum();
                assert!((state.max + state.sum.ln() - sum.ln()).abs() < 1e-13);
                for (j, s) in s.iter().enumerate() {
                    let want = if (3..30).contains(&j) {
                        (capped[j] - state.max).exp()
                    } else {
                        0.0
                    };
                    assert!((s - want).abs() <= 1e-13 * want);
                }
            }
        }
    }

    #[test]
    fn gradients_of_rows_and_columns_agree_with_the_formula() {
        let value = |i: usize, seed: usize| ((i * 7919 + seed) % 1009) as f64 / 504.0 - 1.0;
        let lse: Vec<f64> = (0..40).map(|i| value(i, 5)).collect();
        let delta: Vec<f64> = (0..40).map(|i| value(i, 9)).collect();
        for kernels in Kernels::available() {
            for (cap, by_column) in [(0.0, false), (0.0, true), (0.7, false), (0.7, true)] {
                let raw: Vec<f64> = (0..40).map(|i| value(i, 1)).collect();
                let dp: Vec<f64> = (0..40).map(|i| value(i, 3)).collect();
                let (mut s, mut p) = (raw.clone(), dp.clone());
                // Unseen cells may hold anything.
                s[1] = f64::NAN;
                p[38] = f64::NAN;
                let bounds = Bounds { lo: 2, hi: 37 };
                let queries = Queries {
                    lse: &lse,
                    delta: &delta,
                };
                if by_column {
                    kernels.gradient_columns(&mut s, &mut p, &queries, bounds, cap);
                } else {
                    kernels.gradient_row(&mut s, &mut p, &queries, bounds, cap);
                }
                for j in 0..40 {
                    let query = if by_column { j } else { 0 };
                    let t = raw[j].tanh();
                    let (logit, slope) = if cap == 0.0 {
                        (raw[j], 1.0)
                    } else {
                        (cap * t, 1.0 - t * t)
                    };
                    let seen = if (2..37).contains(&j) { 1.0 } else { 0.0 };
                    let want = seen * (logit - lse[query]).exp();
                    assert!((p[j] - want).abs() < 1e-14);
                    assert!((s[j] - want * (dp[j] - delta[query]) * slope).abs() < 1e-14);
                }
            }
        }
    }
}
