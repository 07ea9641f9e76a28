//! Random masks and a naive picture of placements, shared by the planner's tests.
#![allow(dead_code, reason = "each test file uses its own part of this module")]

use magi_attn::plan::{Pass, Placement, Plan, SidePlacement};
use magi_attn::types::*;
use std::sync::Arc;

/// SplitMix64: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number in `[low, high]`.
    pub fn within(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }
    pub fn range(&mut self, total: i64) -> Range {
        let (a, b) = (self.within(0, total), self.within(0, total));
        Range::new(a.min(b), a.max(b))
    }
}

/// A mask as a table of cells, `[q][k]`.
pub type Cells = Vec<Vec<u32>>;

pub fn cells(mask: &Mask) -> Cells {
    let mut cells = vec![vec![0; mask.total_k() as usize]; mask.total_q() as usize];
    for s in mask.slices() {
        for q in s.q.start..s.q.end {
            for k in s.k.start..s.k.end {
                cells[q as usize][k as usize] += u32::from(s.contains(q, k));
            }
        }
    }
    cells
}

/// Slices of all types and of arbitrary bands that share no cell, some of them empty.
pub fn random_mask(random: &mut Random, total_q: i64, total_k: i64, tries: usize) -> Mask {
    let mut taken = vec![vec![false; total_k as usize]; total_q as usize];
    let mut slices = Vec::new();
    for _ in 0..tries {
        let (q, k) = (random.range(total_q), random.range(total_k));
        let slice = match random.within(0, 4) {
            4 => {
                let lo = random.within(-total_q, total_k);
                Slice::new(q, k, Band::new(lo, lo + random.within(-1, total_k)))
            }
            kind => Slice::from_typed(&TypedSlice {
                q,
                k,
                mask_type: MaskType::from_i32(kind as i32).unwrap(),
            }),
        };
        let inside: Vec<(usize, usize)> = (q.start..q.end)
            .flat_map(|q| (k.start..k.end).map(move |k| (q, k)))
            .filter(|&(q, k)| slice.contains(q, k))
            .map(|(q, k)| (q as usize, k as usize))
            .collect();
        if inside.iter().all(|&(q, k)| !taken[q][k]) {
            inside.iter().for_each(|&(q, k)| taken[q][k] = true);
            slices.push(slice);
        }
    }
    Mask::from_slices(slices, total_q, total_k).unwrap()
}

/// Documents one after the other, each causal or full.
pub fn documents(lengths: &[i64], mask_type: MaskType) -> Mask {
    let mut start = 0;
    let typed: Vec<TypedSlice> = lengths
        .iter()
        .map(|&len| {
            let r = Range::new(start, start + len);
            start += len;
            TypedSlice {
                q: r,
                k: r,
                mask_type,
            }
        })
        .collect();
    Mask::new(&typed, start, start).unwrap()
}

/// Any partition of chunks of any size, including ranks with nothing.
pub fn random_side(random: &mut Random, total: i64, world: usize) -> SidePlacement {
    let chunk_size = random.within(1, total.max(1));
    let chunks = (total + chunk_size - 1) / chunk_size;
    let owners: Vec<u32> = (0..chunks)
        .map(|_| random.within(0, world as i64 - 1) as u32)
        .collect();
    SidePlacement::from_owners(total, chunk_size, &owners, world).unwrap()
}

pub fn random_placement(random: &mut Random, mask: &Mask, world: usize) -> Placement {
    let q = Arc::new(random_side(random, mask.total_q(), world));
    if mask.total_q() == mask.total_k() {
        return Placement::shared(q);
    }
    let k = Arc::new(random_side(random, mask.total_k(), world));
    Placement::from_sides(q, k).unwrap()
}

/// Global tokens of each rank in the order of local rows, from nothing but bounds and owners.
pub fn tokens_of(side: &SidePlacement) -> Vec<Vec<i64>> {
    let mut tokens = vec![Vec::new(); side.world()];
    for (i, &owner) in side.owners().iter().enumerate() {
        tokens[owner as usize].extend(side.bounds()[i]..side.bounds()[i + 1]);
    }
    tokens
}

pub fn shape() -> AttnShape {
    AttnShape {
        heads_q: 4,
        heads_kv: 2,
        head_dim: 16,
        head_dim_v: 16,
        dtype: DType::F32,
    }
}

pub fn config(forward: i32, backward: i32) -> Config {
    Config {
        degree_forward: forward,
        degree_backward: backward,
        ..Config::default()
    }
}

/// The plans of all ranks on one placement.
pub fn plans(mask: &Mask, placement: &Arc<Placement>, config: &Config) -> Vec<Plan> {
    (0..placement.world())
        .map(|rank| Plan::with_placement(mask, &shape(), Arc::clone(placement), rank, config).unwrap())
        .collect()
}

/// Forward and backward pass of every rank.
pub fn passes(plans: &[Plan]) -> [Vec<&Pass>; 2] {
    [
        plans.iter().map(|p| &*p.forward).collect(),
        plans.iter().map(|p| &*p.backward).collect(),
    ]
}

pub fn flat(ranges: &Ranges) -> Vec<i64> {
    ranges.iter().flat_map(|r| r.start..r.end).collect()
}
