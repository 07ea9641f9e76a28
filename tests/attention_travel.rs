//! Attention where queries travel, against dense attention in f64: every mask case over ranks and degrees, random masks,
//! low precision, the same bits on every run.
//!
//! `cargo test` runs cases of at most 1,100 tokens; `MAGI_TEST_MATRIX=full cargo test --release --test attention_travel` runs
//! all.

mod common;
mod common_backend;
mod common_ranks;
mod common_reference;

use common::{any_mask, load_cases};
use common_backend::{Layout, shape};
use common_ranks::{Job, assert_close, over_ranks, parts, problem};
use common_reference::{Answer, Arithmetic, attention};
use magi_attn::plan::{Placement, Stats};
use magi_attn::types::{AttnShape, DType, HostStage, Mask, MaskType, PlacementKind, Range, TypedSlice};
use proptest::prelude::*;

const WORLDS: [usize; 6] = [1, 2, 3, 4, 5, 8];
const DEGREES: [i32; 5] = [0, 1, 2, 4, -1];
const SMALL: i64 = 1_100;
/// Largest error of f64 results, relative to the largest element of the tensor.
const BOUND: f64 = 1e-10;

/// `mask` with queries that may travel; `slack` in thousandths of the mean area.
fn job(mask: &Mask, s: AttnShape, world: usize, degree: i32, chunk_size: i64, slack: i64) -> Job {
    let mut job = Job::new(mask, s, world, degree, chunk_size);
    job.config.qo_comm = true;
    job.config.balance_slack = slack;
    job
}

/// Queries that travel in the forward and in the backward pass.
fn travellers(job: &Job) -> [i64; 2] {
    let placement = Placement::new(&job.mask, job.world, &job.config).unwrap();
    let stats = Stats::new(&job.mask, &placement, &job.shape, &job.config).unwrap();
    stats.volume.map(|v| v.queries)
}

#[test]
fn every_case_equals_dense_attention() {
    let whole = std::env::var("MAGI_TEST_MATRIX").is_ok_and(|v| v == "full");
    let (mut travelled, mut runs) = (0, 0);
    for (i, case) in load_cases().iter().enumerate() {
        let tokens = case.mask.total_q().max(case.mask.total_k());
        if tokens > SMALL && !whole {
            continue;
        }
        let large = tokens > 2_100;
        let s = match (large, i % 2) {
            (true, _) => shape(1, 1, 16, 16, DType::F64),
            (_, 0) => shape(2, 2, 16, 24, DType::F64),
            _ => shape(2, 1, 16, 8, DType::F64),
        };
        let o = problem(&case.mask, &s, i as u64, case.sink_tokens as usize);
        let want = attention(&case.mask, &o, Arithmetic::Exact);
        for world in WORLDS {
            for (d, &degree) in DEGREES.iter().enumerate() {
                // Without the whole matrix every degree comes up with every world, over all cases.
                if !whole && (i + d + world) % 2 == 1 {
                    continue;
                }
                let job = job(&case.mask, s, world, degree, case.chunk_size, [9, 1000][d % 2]);
                let name = format!("{} on {world} ranks, degree {degree}", case.name);
                assert_close(&name, &over_ranks(&job, &o), &want, BOUND);
                travelled += usize::from(travellers(&job).iter().any(|&q| q > 0));
                runs += 1;
            }
        }
    }
    println!("queries travelled in {travelled} of {runs} runs");
    assert!(
        travelled * 5 > runs,
        "queries travelled in {travelled} of {runs} runs only"
    );
}

fn typed(q: (i64, i64), k: (i64, i64), mask_type: MaskType) -> TypedSlice {
    TypedSlice {
        q: Range::new(q.0, q.1),
        k: Range::new(k.0, k.1),
        mask_type,
    }
}

/// A few queries against many keys: everything pays to move queries.
fn few_queries() -> Mask {
    let slices = [
        typed((0, 12), (0, 200), MaskType::Full),
        typed((12, 20), (40, 240), MaskType::Causal),
    ];
    Mask::new(&slices, 21, 240).unwrap()
}

#[test]
fn few_queries_with_sinks_on_every_layout() {
    let mask = few_queries();
    let s = shape(4, 2, 16, 24, DType::F64);
    for (seed, layout) in [
        Layout::Dense,
        Layout::Padded,
        Layout::HeadsFirst,
        Layout::Backwards,
    ]
    .into_iter()
    .enumerate()
    {
        let o = problem(&mask, &s, seed as u64, 2);
        let want = attention(&mask, &o, Arithmetic::Exact);
        for (world, degree) in [(2, 0), (3, 2), (5, 1), (8, 8), (8, -1)] {
            let mut job = job(&mask, s, world, degree, 2, 50);
            job.layout = layout;
            assert!(travellers(&job).iter().all(|&q| q > 0));
            let name = format!("{world} ranks, degree {degree}, layout {seed}");
            assert_close(&name, &over_ranks(&job, &o), &want, BOUND);
        }
    }
}

#[test]
fn low_precision_is_within_its_bounds() {
    let mask = few_queries();
    for (dtype, eps) in [
        (DType::Bf16, 2.0 / 256.0),
        (DType::F16, 2.0 / 2048.0),
        (DType::F32, 1e-5),
    ] {
        let s = shape(4, 4, 32, 32, dtype);
        let o = problem(&mask, &s, 4, 2);
        let one = over_ranks(&Job::new(&mask, s, 1, 0, 2), &o);
        for high in [false, true] {
            let mut job = job(&mask, s, 6, 2, 2, 50);
            job.config.forward_high_precision_reduce = high;
            job.config.backward_high_precision_reduce = high;
            assert!(travellers(&job).iter().all(|&q| q > 0));
            let name = format!("{} with high precision {high}", dtype.name());
            // An element is rounded at most twice on its way; in the accumulator type nothing is.
            let bound = if high { 1e-5 } else { eps };
            assert_close_but_lse(&name, &over_ranks(&job, &o), &one, bound);
        }
    }
}

/// `assert_close`, with lse within what f32 holds whatever the rest travels in.
fn assert_close_but_lse(name: &str, have: &Answer, want: &Answer, bound: f64) {
    assert_close(name, have, want, bound);
    for (a, b) in have.lse.iter().zip(&want.lse) {
        assert!(a == b || (a - b).abs() < 1e-5, "{name}: lse {a} and {b}");
    }
}

#[test]
fn every_run_gives_the_same_bits() {
    let mask = few_queries();
    for dtype in [DType::F64, DType::Bf16] {
        let s = shape(4, 2, 16, 16, dtype);
        let o = problem(&mask, &s, 5, 1);
        let job = job(&mask, s, 5, 2, 2, 100);
        let first = over_ranks(&job, &o);
        for _ in 0..3 {
            let again = over_ranks(&job, &o);
            for ((name, a), (_, b)) in parts(&first).into_iter().zip(parts(&again)) {
                assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
            }
        }
    }
}

#[test]
fn more_ranks_than_tokens_and_nothing_to_see() {
    let s = shape(2, 1, 8, 12, DType::F64);
    let masks = [
        Mask::new(&[typed((0, 3), (0, 40), MaskType::Full)], 3, 40).unwrap(),
        Mask::new(&[typed((0, 1), (0, 1), MaskType::Full)], 1, 1).unwrap(),
        Mask::new(&[], 9, 9).unwrap(),
        Mask::new(&[], 0, 7).unwrap(),
    ];
    for (i, mask) in masks.iter().enumerate() {
        let o = problem(mask, &s, i as u64, 2);
        let want = attention(mask, &o, Arithmetic::Exact);
        for world in 1..=8 {
            let job = job(mask, s, world, world as i32 % 4, 1, 500);
            assert_close(
                &format!("mask {i} on {world}"),
                &over_ranks(&job, &o),
                &want,
                BOUND,
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_masks_equal_dense_attention(
        mask in any_mask(72, 40), world in 1..=8usize, degrees in [-1..=8i32, -1..=8i32], chunk in 0..=12i64,
        sequential: bool, order in -1..=2i64, slack in 0..=1000i64, groups in 1..=3i64, sinks in 0..=3usize, layout: bool, seed: u64,
    ) {
        let s = shape(2 * groups, 2, 12, 16, DType::F64);
        let o = problem(&mask, &s, seed % 1000, sinks);
        let mut job = job(&mask, s, world, degrees[0], chunk, slack);
        job.config.degree_backward = degrees[1];
        job.config.bwd_hide_tail_reduce = HostStage::numbered(order).unwrap();
        job.layout = if layout { Layout::Padded } else { Layout::Dense };
        if sequential {
            job.config.placement = PlacementKind::Sequential;
        }
        let want = attention(&mask, &o, Arithmetic::Exact);
        assert_close(&format!("{job:?}", job = (world, degrees, order, chunk, slack)), &over_ranks(&job, &o), &want, BOUND);
    }
}
