//! Slices: random ones, and short names for chosen ones.

use magi_attn::types::{Band, Range, Slice, StageSlice};

use super::Dice;

/// Slices, and tokens of the two sides.
pub type Slices = (Vec<StageSlice>, usize, [usize; 2]);

/// Slices that share no cell, over up to two sources.
pub fn random_slices(dice: &mut Dice) -> Slices {
    const SIZES: [i64; 7] = [1, 5, 64, 100, 128, 129, 200];
    let size = |dice: &mut Dice| SIZES[dice.below(7) as usize];
    if dice.below(6) == 0 {
        // Small documents: rows with limits of their own.
        let (n, w) = (60 + dice.below(150), [7, 20, 50][dice.below(3) as usize]);
        let document = |a: i64| slice(a, (a + w).min(n), a, (a + w).min(n), dice_kind(a), 0);
        return (
            (0..n).step_by(w as usize).map(document).collect(),
            n as usize,
            [n as usize, 0],
        );
    }
    let tq = size(dice);
    let tk = [size(dice), if dice.below(3) == 0 { size(dice) } else { 0 }];
    let mut slices = Vec::new();
    for (source, &keys) in tk.iter().enumerate().filter(|(_, keys)| **keys > 0) {
        let cuts = |dice: &mut Dice, n: i64, most: i64| {
            let mut at: Vec<i64> = (0..dice.below(most))
                .map(|_| dice.below(n + 1))
                .chain([0, n])
                .collect();
            at.sort_unstable();
            at.dedup();
            at
        };
        for rows in cuts(dice, tq, 6).windows(2) {
            for columns in cuts(dice, keys, 4).windows(2) {
                if dice.below(3) > 0 {
                    let kind = dice.below(4);
                    slices.push(slice(
                        rows[0],
                        rows[1],
                        columns[0],
                        columns[1],
                        kind,
                        source as u8,
                    ));
                }
            }
        }
    }
    (slices, tq as usize, tk.map(|n| n as usize))
}

fn dice_kind(a: i64) -> i64 {
    a / 7 % 2
}

/// `kind`: 1 bounded above (causal), 2 below, 3 both.
pub fn slice(q0: i64, q1: i64, k0: i64, k1: i64, kind: i64, source: u8) -> StageSlice {
    let lo = if kind & 2 != 0 { k0 - q0 } else { Band::NO_LO };
    let hi = if kind & 1 != 0 { k1 - q1 } else { Band::NO_HI };
    StageSlice {
        slice: Slice::new(Range::new(q0, q1), Range::new(k0, k1), Band::new(lo, hi)),
        source,
    }
}
