//! Masks that plans are timed on.

use magi_attn::types::*;

/// SplitMix64: small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: i64) -> i64 {
        (self.next() % n as u64) as i64
    }

    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f64 {
        let (a, b) = (self.unit().max(1e-300), self.unit());
        (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    }
}

pub fn causal(total: i64, start: i64, end: i64) -> TypedSlice {
    let r = Range::new(start, end.min(total));
    TypedSlice {
        q: r,
        k: r,
        mask_type: MaskType::Causal,
    }
}

/// Causal documents of the lengths that `next` gives, the last one cut at `total`.
pub fn documents(total: i64, mut next: impl FnMut() -> i64) -> Mask {
    let (mut at, mut slices) = (0, Vec::new());
    while at < total {
        let len = next();
        slices.push(causal(total, at, at + len));
        at += len;
    }
    Mask::new(&slices, total, total).unwrap()
}

/// Log-normal lengths, median 4,096, sigma 1.2, none over a quarter of the total.
pub fn packed(seed: u64, total: i64) -> Mask {
    let mut random = Random(seed);
    documents(total, || {
        loop {
            let len = (4096.0 * (1.2 * random.normal()).exp()) as i64;
            if (1..=total / 4).contains(&len) {
                return len;
            }
        }
    })
}

/// A binary tree of shared prefixes: every node's rows see the nodes above it, and themselves causally.
pub fn prefix_tree(total: i64) -> Mask {
    let levels = (total / 2048).ilog2().min(6) as i64;
    let node = total / ((1 << (levels + 1)) - 1);
    let mut slices = Vec::new();
    for i in 0..(1i64 << (levels + 1)) - 1 {
        let q = Range::new(i * node, (i + 1) * node);
        slices.push(causal(total, q.start, q.end));
        let mut up = i;
        while up > 0 {
            up = (up - 1) / 2;
            slices.push(TypedSlice {
                q,
                k: Range::new(up * node, (up + 1) * node),
                mask_type: MaskType::Full,
            });
        }
    }
    Mask::new(&slices, total, total).unwrap()
}

/// Questions with 7 answers each: an answer sees its question and itself.
pub fn share_question(total: i64) -> Mask {
    let group = (total / 16).min(32768);
    let part = group / 8;
    let mut slices = Vec::new();
    for start in (0..total / group).map(|g| g * group) {
        for i in 0..8 {
            let q = Range::new(start + i * part, start + (i + 1) * part);
            slices.push(causal(total, q.start, q.end));
            if i > 0 {
                let k = Range::new(start, start + part);
                let mask_type = MaskType::Full;
                slices.push(TypedSlice { q, k, mask_type });
            }
        }
    }
    Mask::new(&slices, total, total).unwrap()
}

/// Blocks of 1,024 queries that see 16 random blocks of 1,024 keys each.
pub fn sparse(total: i64) -> Mask {
    let mut random = Random(5);
    let blocks = total / 1024;
    let mut slices = Vec::new();
    for q in 0..blocks {
        let mut seen: Vec<i64> = (0..16).map(|_| random.below(blocks)).collect();
        seen.sort_unstable();
        seen.dedup();
        for k in seen {
            let block = |i: i64| Range::new(i * 1024, (i + 1) * 1024);
            slices.push(Slice::new(block(q), block(k), Band::FULL));
        }
    }
    Mask::from_slices(slices, total, total).unwrap()
}

pub fn banded(total: i64, band: Band) -> Mask {
    let all = Range::new(0, total);
    Mask::from_slices(vec![Slice::new(all, all, band)], total, total).unwrap()
}

pub fn block_causal(total: i64) -> Mask {
    let blocks = (0..total).step_by(4096).map(|start| {
        let end = (start + 4096).min(total);
        Slice::new(Range::new(start, end), Range::new(0, end), Band::FULL)
    });
    Mask::from_slices(blocks.collect(), total, total).unwrap()
}

#[derive(serde::Deserialize)]
pub struct Case {
    pub name: String,
    pub cp: usize,
    pub chunk: i64,
    tokens: i64,
    q_ranges: Vec<[i64; 2]>,
    k_ranges: Vec<[i64; 2]>,
    types: Vec<String>,
    pub doc_lengths: Option<Vec<i64>>,
}

pub fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../tests/cases/plan_benchmark.json")).unwrap()
}

impl Case {
    pub fn mask(&self) -> Mask {
        let slices: Vec<TypedSlice> = self
            .q_ranges
            .iter()
            .zip(&self.k_ranges)
            .zip(&self.types)
            .map(|((q, k), name)| TypedSlice {
                q: Range::new(q[0], q[1]),
                k: Range::new(k[0], k[1]),
                mask_type: if name == "full" {
                    MaskType::Full
                } else {
                    MaskType::Causal
                },
            })
            .collect();
        Mask::new(&slices, self.tokens, self.tokens).unwrap()
    }
}
