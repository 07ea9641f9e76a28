//! Rows of a tensor converted to f64 in the layouts of a product's operands.

use super::product::PANEL;
use super::view::View;

/// Rows of a product: every one of `heads` heads of every one of `tokens` tokens, heads innermost, so that rows next
/// to each other see nearly the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// First token.
    pub token: i64,
    /// Tokens.
    pub tokens: usize,
    /// First head.
    pub head: usize,
    /// Heads.
    pub heads: usize,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens * self.heads
    }

    /// Token and head of row `i`.
    pub fn get(&self, i: usize) -> (i64, usize) {
        (self.token + (i / self.heads) as i64, self.head + i % self.heads)
    }

    /// Token and head of every row.
    pub fn iter(&self) -> impl Iterator<Item = (i64, usize)> + use<> {
        let rows = *self;
        (0..rows.len()).map(move |i| rows.get(i))
    }
}

/// Whether every element is finite.
fn all_finite(x: &[f64]) -> bool {
    // Eight chains: x * 0 is 0 unless x is infinite or NaN, and NaN stays in its sum.
    let mut sums = [0.0; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * 0.0;
        }
    }
    sums.iter().chain(rest).all(|x| x.is_finite())
}

/// Rows one after the other, `width` apart, times `factor`: operand A.
pub(super) fn pack_rows(view: &View, rows: &Rows, factor: f64, to: &mut [f64]) {
    let width = view.width();
    for ((token, head), to) in rows.iter().zip(to.chunks_exact_mut(width)) {
        view.read(token, head, to);
        if factor != 1.0 {
            to.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// Panels of operand B, times `factor`: `across` has a row of the tensor in every column (depth = width), `along` in
/// every row (depth = number of rows); either may be absent. Columns are filled up with zeros to whole panels.
///
/// Returns whether every element is finite. `row` is scratch of at least the width rounded up to panels.
pub(super) fn pack_panels(
    view: &View,
    rows: &Rows,
    factor: f64,
    row: &mut [f64],
    mut across: Option<&mut [f64]>,
    mut along: Option<&mut [f64]>,
) -> bool {
    let (width, count) = (view.width(), rows.len());
    let row = &mut row[..width.next_multiple_of(PANEL)];
    row[width..].fill(0.0);
    let mut finite = true;
    for (i, (token, head)) in rows.iter().enumerate() {
        view.read(token, head, row);
        if factor != 1.0 {
            row.iter_mut().for_each(|x| *x *= factor);
        }
        finite &= all_finite(row);
        if let Some(across) = across.as_deref_mut() {
            let (panels, _) = across[i / PANEL * PANEL * width..][..PANEL * width].as_chunks_mut::<PANEL>();
            for (to, &x) in panels.iter_mut().zip(row.iter()) {
                to[i % PANEL] = x;
            }
        }
        if let Some(along) = along.as_deref_mut() {
            for (panel, x) in row.chunks_exact(PANEL).enumerate() {
                along[(panel * count + i) * PANEL..][..PANEL].copy_from_slice(x);
            }
        }
    }
    if let Some(across) = across.filter(|_| !count.is_multiple_of(PANEL)) {
        let (panels, _) = across[count / PANEL * PANEL * width..][..PANEL * width].as_chunks_mut::<PANEL>();
        for to in panels {
            to[count % PANEL..].fill(0.0);
        }
    }
    finite
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DType, Device, Tensor};

    #[test]
    fn panels_hold_every_element_and_zeros() {
        let (tokens, heads, width) = (7usize, 3usize, 11usize);
        let mut data: Vec<f64> = (0..tokens * heads * width).map(|i| i as f64).collect();
        let shape = [tokens as i64, heads as i64, width as i64];
        // SAFETY: the vector has exactly these elements and outlives the view.
        let t = unsafe { Tensor::dense(data.as_mut_ptr().cast(), DType::F64, Device::Cpu, &shape) };
        let view = View::new("t", &t, None).unwrap();
        let rows = Rows {
            token: 1,
            tokens: 5,
            head: 1,
            heads: 2,
        };
        let (mut row, mut across, mut along) = (vec![9.0; 16], vec![9.0; 16 * 11], vec![9.0; 16 * 10]);
        assert!(pack_panels(
            &view,
            &rows,
            2.0,
            &mut row,
            Some(&mut across),
            Some(&mut along)
        ));
        for i in 0..16 {
            for c in 0..16 {
                let want = if i < 10 && c < 11 {
                    2.0 * (((1 + i / 2) * heads + 1 + i % 2) * width + c) as f64
                } else {
                    0.0
                };
                if c < 11 {
                    assert_eq!(across[i / 8 * 8 * 11 + c * 8 + i % 8], want);
                }
                if i < 10 {
                    assert_eq!(along[(c / 8 * 10 + i) * 8 + c % 8], want);
                }
            }
        }
        data[(3 * heads + 2) * width + 10] = f64::NAN;
        assert!(!pack_panels(&view, &rows, 1.0, &mut row, None, None));
    }
}
