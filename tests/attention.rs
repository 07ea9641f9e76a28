//! Every mask case over ranks and degrees, forward and backward, against dense attention in f64.
//!
//! `cargo test` runs all cases of at most 2,100 tokens on every number of ranks and every degree, and larger ones on 4
//! ranks at degree 2. `MAGI_TEST_MATRIX=full cargo test --release --test attention` runs the whole matrix.

mod common;
mod common_backend;
mod common_ranks;
mod common_reference;

use common::{Case, load_cases};
use common_backend::{Random, operands, random_sink, shape};
use common_ranks::{Job, assert_close, over_ranks};
use common_reference::{Answer, Arithmetic, Operands, attention};
use magi_attn::types::{AttnShape, DType};

const WORLDS: [usize; 6] = [1, 2, 3, 4, 5, 8];
const DEGREES: [i32; 4] = [0, 1, 2, 4];
/// Cases of at most so many tokens run in full.
const SMALL: i64 = 2_100;
/// Largest error of f64 results, relative to the largest element of the tensor.
const BOUND: f64 = 1e-10;

fn is_small(case: &Case) -> bool {
    case.mask.total_q().max(case.mask.total_k()) <= SMALL
}

/// Operands of a case, with its sinks: shared ones, or each query's own for every other case.
fn problem(case: &Case, s: &AttnShape, index: usize) -> Operands {
    let mut random = Random(index as u64);
    let mut o = operands(&mut random, &case.mask, s);
    if case.sink_tokens > 0 {
        let per_token = index % 2 == 1;
        let count = case.sink_tokens as usize;
        o.sink = Some(random_sink(
            &mut random,
            case.mask.total_q(),
            s.heads_q,
            count,
            per_token,
        ));
    }
    o.cap = if index % 3 == 2 { 2.0 } else { 0.0 };
    o
}

fn check(case: &Case, s: AttnShape, o: &Operands, want: &Answer, worlds: &[usize], degrees: &[i32]) {
    for &world in worlds {
        for &degree in degrees {
            let job = Job::new(&case.mask, s, world, degree, case.chunk_size);
            let name = format!("{} on {world} ranks, degree {degree}", case.name);
            assert_close(&name, &over_ranks(&job, o), want, BOUND);
        }
    }
}

#[test]
fn small_cases_equal_dense_attention() {
    let s = shape(2, 1, 16, 24, DType::F64);
    for (i, case) in load_cases().iter().enumerate().filter(|(_, c)| is_small(c)) {
        let o = problem(case, &s, i);
        let want = attention(&case.mask, &o, Arithmetic::Exact);
        check(case, s, &o, &want, &WORLDS, &DEGREES);
    }
}

#[test]
fn large_cases_equal_one_rank_and_dense_attention() {
    let whole = std::env::var("MAGI_TEST_MATRIX").is_ok_and(|v| v == "full");
    let s = shape(1, 1, 16, 16, DType::F64);
    for (i, case) in load_cases().iter().enumerate().filter(|(_, c)| !is_small(c)) {
        let started = std::time::Instant::now();
        let o = problem(case, &s, i);
        let want = attention(&case.mask, &o, Arithmetic::Exact);
        let dense = started.elapsed();
        check(case, s, &o, &want, &[1], &[1]);
        let one = started.elapsed() - dense;
        if whole {
            check(case, s, &o, &want, &WORLDS, &DEGREES);
        } else {
            check(case, s, &o, &want, &[4], &[2]);
        }
        println!(
            "{}: dense {dense:.1?}, one rank {one:.1?}, all {:.1?}",
            case.name,
            started.elapsed()
        );
    }
}
