//! Random masks on random ranks against dense attention in f64, and the corners: cross-attention, more ranks than tokens,
//! no tokens at all, nothing visible.

mod common;
mod common_backend;
mod common_ranks;
mod common_reference;

use common::any_mask;
use common_backend::{Layout, Random, operands, random_sink, shape};
use common_ranks::{Job, assert_close, over_ranks};
use common_reference::{Arithmetic, attention};
use magi_attn::types::{Config, DType, HostStage, Mask, MaskType, PlacementKind, Range, TypedSlice};
use proptest::prelude::*;

const LAYOUTS: [Layout; 4] = [
    Layout::Dense,
    Layout::Padded,
    Layout::HeadsFirst,
    Layout::Backwards,
];

/// Everything about a problem but its mask.
#[derive(Clone, Debug)]
struct Setting {
    world: usize,
    degrees: [i32; 2],
    /// When backward computes the host stage: a number of `HostStage`.
    order: i64,
    chunk_size: i64,
    sequential: bool,
    /// Key heads, query heads of each, head dimensions.
    heads: [i64; 2],
    dims: [i64; 2],
    layout: usize,
    /// Sink tokens, 0 for none.
    sinks: usize,
    per_token: bool,
    capped: bool,
    seed: u64,
}

fn any_setting() -> impl Strategy<Value = Setting> {
    let plan = (
        1..=8usize,
        [0..=8i32, 0..=8i32],
        -1..=2i64,
        0..=20i64,
        any::<bool>(),
    );
    let shape = ([1..=2i64, 1..=3i64], [8..=20i64, 8..=20i64], 0..4usize);
    let rest = (0..=8usize, any::<bool>(), any::<bool>(), any::<u64>());
    (plan, shape, rest).prop_map(
        |(
            (world, degrees, order, chunk_size, sequential),
            (heads, dims, layout),
            (sinks, per_token, capped, seed),
        )| {
            Setting {
                world,
                degrees,
                order,
                chunk_size,
                sequential,
                heads,
                dims,
                layout,
                sinks,
                per_token,
                capped,
                seed,
            }
        },
    )
}

fn check(mask: &Mask, t: &Setting) {
    let s = shape(
        t.heads[0] * t.heads[1],
        t.heads[0],
        t.dims[0],
        t.dims[1],
        DType::F64,
    );
    let mut random = Random(t.seed);
    let mut o = operands(&mut random, mask, &s);
    if t.sinks > 0 {
        o.sink = Some(random_sink(
            &mut random,
            mask.total_q(),
            s.heads_q,
            t.sinks,
            t.per_token,
        ));
    }
    o.cap = if t.capped { 1.5 } else { 0.0 };
    let mut job = Job::new(mask, s, t.world, t.degrees[0], t.chunk_size);
    job.layout = LAYOUTS[t.layout];
    job.config = Config {
        degree_backward: t.degrees[1],
        bwd_hide_tail_reduce: HostStage::numbered(t.order).unwrap(),
        placement: if t.sequential {
            PlacementKind::Sequential
        } else {
            PlacementKind::Balanced
        },
        ..job.config
    };
    let want = attention(mask, &o, Arithmetic::Exact);
    assert_close(&format!("{t:?}"), &over_ranks(&job, &o), &want, 1e-10);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_dense_attention(mask in any_mask(72, 40), setting in any_setting()) {
        check(&mask, &setting);
    }
}

fn typed(q: (i64, i64), k: (i64, i64), mask_type: MaskType) -> TypedSlice {
    TypedSlice {
        q: Range::new(q.0, q.1),
        k: Range::new(k.0, k.1),
        mask_type,
    }
}

/// On 1 to 8 ranks with different degrees, with and without sinks.
fn check_on_all_worlds(slices: &[TypedSlice], total_q: i64, total_k: i64) {
    let mask = Mask::new(slices, total_q, total_k).unwrap();
    for world in 1..=8 {
        for sinks in [0, 2] {
            let degree = world as i32 % 4;
            let setting = Setting {
                world,
                degrees: [degree, 3 - degree],
                order: -1,
                chunk_size: 0,
                sequential: world % 2 == 0,
                heads: [1, 2],
                dims: [8, 12],
                layout: world % 4,
                sinks,
                per_token: world % 3 == 0,
                capped: false,
                seed: world as u64,
            };
            check(&mask, &setting);
        }
    }
}

#[test]
fn cross_attention() {
    let slices = [
        typed((0, 20), (0, 50), MaskType::Full),
        typed((20, 37), (10, 60), MaskType::Causal),
        typed((20, 30), (70, 90), MaskType::InvCausal),
    ];
    check_on_all_worlds(&slices, 37, 90);
    check_on_all_worlds(&[typed((0, 90), (0, 5), MaskType::Full)], 90, 5);
}

#[test]
fn more_ranks_than_tokens() {
    check_on_all_worlds(&[typed((0, 3), (0, 3), MaskType::Causal)], 3, 3);
    check_on_all_worlds(&[typed((0, 1), (0, 1), MaskType::Full)], 1, 1);
    check_on_all_worlds(&[typed((0, 2), (0, 40), MaskType::Full)], 2, 40);
}

#[test]
fn no_tokens_and_nothing_visible() {
    check_on_all_worlds(&[], 0, 0);
    check_on_all_worlds(&[], 0, 9);
    check_on_all_worlds(&[], 9, 0);
    check_on_all_worlds(&[], 21, 21);
    check_on_all_worlds(&[typed((3, 3), (2, 8), MaskType::Full)], 21, 30);
}
