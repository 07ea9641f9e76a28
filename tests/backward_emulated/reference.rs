//! Operands at random and their gradients in f64.

use magi_attn::types::StageSlice;

use super::case::Case;
use super::{Dice, Variant};

/// A [tokens, heads, width] tensor: bits for the kernel, values for the reference.
pub struct Drawn {
    pub bits: Vec<u16>,
    values: Vec<f64>,
    pub width: usize,
    pub heads: usize,
}

impl Drawn {
    /// What `seen` leaves out is NaN for the kernel and 0 for the reference.
    fn new(dice: &mut Dice, v: &Variant, seen: &[bool], heads: usize, width: usize) -> Drawn {
        let mut drawn = Drawn {
            bits: Vec::new(),
            values: Vec::new(),
            width,
            heads,
        };
        for &seen in seen {
            for _ in 0..heads * width {
                let bits = v.round(dice.normal());
                drawn.bits.push(if seen { bits } else { 0x7FFF });
                drawn.values.push(if seen { v.widen(bits) } else { 0.0 });
            }
        }
        drawn
    }

    fn row(&self, token: usize, head: usize) -> &[f64] {
        &self.values[(token * self.heads + head) * self.width..][..self.width]
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn add(to: &mut [f64], from: &[f64], factor: f64) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += factor * f);
}

/// One case: operands, who sees whom, and the gradients in f64.
pub struct Reference {
    pub q: Drawn,
    pub k: Drawn,
    pub v: Drawn,
    pub dout: Drawn,
    /// [heads_q][2][tokens padded to 4, by 2][4]: of even tokens, then of odd ones, lse and delta, each with the next one's.
    pub stats: Vec<f32>,
    pub seen_q: Vec<bool>,
    pub seen_k: Vec<bool>,
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
}

pub fn reference(
    dice: &mut Dice,
    v: &Variant,
    c: &Case,
    slices: &[StageSlice],
    tq: usize,
    tk: [usize; 2],
) -> Reference {
    let keys = tk[0] + tk[1];
    let ((hq, hk), (d, dv)) = (c.heads, c.dims);
    let scale = (d as f64).powf(-0.5);
    let mut sees = vec![false; tq * keys];
    for s in slices {
        for q in s.slice.q.start..s.slice.q.end {
            for k in (s.slice.k.start..s.slice.k.end).filter(|k| s.slice.contains(q, *k)) {
                sees[q as usize * keys + k as usize + if s.source == 1 { tk[0] } else { 0 }] = true;
            }
        }
    }
    let of_q: Vec<bool> = (0..tq)
        .map(|q| sees[q * keys..][..keys].contains(&true))
        .collect();
    let of_k: Vec<bool> = (0..keys).map(|k| (0..tq).any(|q| sees[q * keys + k])).collect();
    let q = Drawn::new(dice, v, &of_q, hq, d);
    let k = Drawn::new(dice, v, &of_k, hk, d);
    let values = Drawn::new(dice, v, &of_k, hk, dv);
    let dout = Drawn::new(dice, v, &of_q, hq, dv);
    let padded = tq.div_ceil(4) * 4;
    let mut r = Reference {
        stats: [f32::INFINITY, f32::INFINITY, 0.0, 0.0].repeat(hq * padded),
        dq: vec![0.0; tq * hq * d],
        dk: vec![0.0; keys * hk * d],
        dv: vec![0.0; keys * hk * dv],
        q,
        k,
        v: values,
        dout,
        seen_q: of_q,
        seen_k: of_k,
    };
    for (i, h) in (0..tq).flat_map(|i| (0..hq).map(move |h| (i, h))) {
        let g = h / (hq / hk);
        let seen: Vec<usize> = (0..keys).filter(|j| sees[i * keys + j]).collect();
        let logits: Vec<(f64, f64)> = seen
            .iter()
            .map(|&j| {
                let s = scale * dot(r.q.row(i, h), r.k.row(j, g));
                let t = (s / c.softcap).tanh();
                if c.softcap > 0.0 {
                    (c.softcap * t, 1.0 - t * t)
                } else {
                    (s, 1.0)
                }
            })
            .collect();
        let most = logits.iter().map(|l| l.0).fold(f64::NEG_INFINITY, f64::max);
        let lse = most + logits.iter().map(|l| (l.0 - most).exp()).sum::<f64>().ln();
        let (lse2, p): (f64, Vec<f64>) = match seen.is_empty() {
            true => (f64::INFINITY, Vec::new()),
            false => (
                lse * std::f64::consts::LOG2_E,
                logits.iter().map(|l| (l.0 - lse).exp()).collect(),
            ),
        };
        let dp: Vec<f64> = seen
            .iter()
            .map(|&j| dot(r.dout.row(i, h), r.v.row(j, g)))
            .collect();
        let delta = dot(&p, &dp);
        for first in i.saturating_sub(1)..=i {
            let pair = ((2 * h + first % 2) * (padded / 2) + first / 2) * 4;
            r.stats[pair + i - first] = lse2 as f32;
            r.stats[pair + i - first + 2] = delta as f32;
        }
        for (n, &j) in seen.iter().enumerate() {
            let ds = scale * p[n] * (dp[n] - delta) * logits[n].1;
            add(&mut r.dq[(i * hq + h) * d..][..d], r.k.row(j, g), ds);
            add(&mut r.dk[(j * hk + g) * d..][..d], r.q.row(i, h), ds);
            add(&mut r.dv[(j * hk + g) * dv..][..dv], r.dout.row(i, h), p[n]);
        }
    }
    r
}
